"""The gateway beside others, before an instant upstream: what must live here is what only that comparison needs.

Nothing in `src/loomgate` imports this, and nothing here imports `loomgate`.
"""
