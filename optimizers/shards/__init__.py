"""Which slice of which parameter lies where in a flat tensor, for every engine."""
