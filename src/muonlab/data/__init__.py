"""Text and token files -> a corpus of train and validation tokens -> batches. The exact position is state."""
