"""GLM-4.6V in MLX: text decoder, vision tower, and the loading of their weights."""
