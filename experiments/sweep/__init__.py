"""Sweeps: many trials over batch sizes, optimizers, hyperparameter settings and seeds, here or on SLURM."""
