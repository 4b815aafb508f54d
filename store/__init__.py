"""store: what is true: embeddings and checkpoints on disk, and the database of runs, pairs and results."""
