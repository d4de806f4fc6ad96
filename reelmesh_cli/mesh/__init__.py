"""A whole mesh on one machine, as processes: planned, started, watched and stopped."""
