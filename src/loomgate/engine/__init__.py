"""The run engine: a run from `queued` to its end, whatever happens to the process on the way.

What must live here: when a run moves and where to (``plan``, pure), carrying the move out (``perform``), what the
model sees (``context``, ``truncate``), claiming and leases (``worker``), and the verbs that clients use
(``service``). What must not: SQL, HTTP, statuses compared anywhere but in ``wire/lifecycle``.
"""
