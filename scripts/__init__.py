"""Programs of the repository: setup, benchmarks, simulations, figures. Not part of the installed package."""
