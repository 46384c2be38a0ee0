"""Starts the processes of a run: on this machine, over ssh or MPI, or on SLURM; and `bellwether doctor`."""
