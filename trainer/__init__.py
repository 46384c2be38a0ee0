"""What a run does: config -> data -> model -> engine -> loop -> checkpoints -> report."""
