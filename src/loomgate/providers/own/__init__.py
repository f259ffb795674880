"""Formats that one vendor alone has: small translations from OpenAI's shapes and back.

What must live here: those formats, one table for an endpoint. What must not: addresses and keys (``catalogue``), and a
dialect that several vendors speak.
"""
