"""The branch method (Merrill et al. 2025, 2505.23971): the local critical batch size, from branches of a run at larger batches."""
