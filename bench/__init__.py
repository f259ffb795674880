"""Measuring the server from outside, over real HTTP: what must live here is what only a measurement needs.

Nothing in `src/loomgate` imports this, and nothing here imports `loomgate`: the server is a separate process,
and the bench knows its wire and its database file only.
"""
