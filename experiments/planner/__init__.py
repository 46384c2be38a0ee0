"""Estimates before a run: memory, time, energy, scaling, and whether its batch size pays."""
