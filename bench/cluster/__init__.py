"""`make bench-cluster`: API nodes and workers as processes on a real PostgreSQL and Redis."""
