"""Several nodes on one PostgreSQL: real processes and real servers, stopped, killed and paused."""
