"""How far a batch can be raised before it stops paying: measurements of many runs, and what they say together."""
