"""Numbers in, numbers out: intervals, survival, equivalence."""
