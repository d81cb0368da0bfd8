"""Usage: who used how much of what."""
