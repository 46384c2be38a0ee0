"""From the measurements of a sweep to its best settings, critical batch size and published file formats."""
