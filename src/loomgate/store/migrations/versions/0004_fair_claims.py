"""Indexes by which a claim finds each workspace's next runs, and those that somebody has to come back to."""

from loomgate.store.migrations import add_index

revision = "0004"
down_revision = "0003"

_QUEUED = "status = 'queued' AND holds IS NOT NULL"
_INDEXES = {
    "ix_runs_queued": (["workspace", "due"], _QUEUED),
    "ix_runs_queued_expires_at": (["expires_at"], _QUEUED),
    "ix_runs_held": (["workspace", "status", "due"], "due IS NOT NULL AND status IN ('cancelling', 'in_progress')"),
    "ix_runs_owed": (["due"], "due IS NOT NULL AND (status <> 'queued' OR holds IS NULL)"),
}


def upgrade() -> None:
    """Make the indexes."""
    for name, (columns, condition) in _INDEXES.items():
        add_index(name, "runs", columns, condition=condition)
