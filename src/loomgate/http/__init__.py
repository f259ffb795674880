"""The door: routes, who is calling, what a body or query may say, and how answers, errors and streams are written.

What must live here: everything that knows HTTP, and the rules about requests that the types of ``wire/`` cannot say.
What must not: SQL, model calls, or decisions about what happens to a run after it was created (``engine/``).
"""
