"""How a run starts: one config -> N processes."""
