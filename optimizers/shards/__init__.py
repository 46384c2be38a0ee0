"""For a flat tensor: which pieces belong to which parameter, for every engine."""
