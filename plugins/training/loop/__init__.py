"""The training loop, its checkpoints, and several processes training one model."""
