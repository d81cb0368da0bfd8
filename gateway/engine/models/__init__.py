"""Base models in memory and their forward pass."""
