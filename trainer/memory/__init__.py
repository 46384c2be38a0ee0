"""The memory of a rank in training, computed without allocating the model: for `bellwether plan` and `batch.micro: auto`."""
