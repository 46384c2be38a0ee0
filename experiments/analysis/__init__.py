"""Analysis of measurements: best settings, critical batch size, and published file formats."""
