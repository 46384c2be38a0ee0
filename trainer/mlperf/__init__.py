"""MLPerf training: the result log of a run, and its place among reference convergence points and submissions."""
