"""Experiments over many runs: sweeps, critical batch size, learning rate range test, memory and time estimates, reports."""
