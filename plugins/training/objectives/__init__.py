"""What a training step minimises: supervised cross-entropy and direct preference optimization."""
