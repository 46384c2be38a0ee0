"""What a run would take, before it runs: memory, time, energy and what the batch is worth."""
