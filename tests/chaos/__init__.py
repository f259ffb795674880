"""A whole cluster of real processes under random faults, and the judge of what it has promised meanwhile."""
