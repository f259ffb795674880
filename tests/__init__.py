"""The tests, filed as the rooms are."""
