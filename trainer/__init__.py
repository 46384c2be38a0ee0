"""What a run does: config -> data -> model -> engine -> loop -> checkpoints -> report."""

__version__ = "0.1.0"
