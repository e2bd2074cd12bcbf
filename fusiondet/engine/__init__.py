"""Training: the trainer, its hooks and its checkpoints."""
