"""What streams say, in which order, and how the official SDK follows them (BEHAVIOUR sections 10 and 12)."""
