"""Loomgate: a self-hosted server for code written against OpenAI's Assistants API v2.

The rooms and the one direction in which they may import each other are drawn in
``ARCHITECTURE.md``; ``.importlinter`` holds the same rule for machines.
"""

__version__ = "0.1.0"
