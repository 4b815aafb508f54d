"""workers: how it is done: the RQ worker, the engine and the model. The only room that imports mlx."""
