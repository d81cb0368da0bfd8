"""PEFT's adapter format: the layout of its tensors, its configuration, and the checks that an adapter must pass."""
