"""One suite over every wire dialect of chat."""
