"""Many requests at a time with a model in this process: ragged continuous batches."""
