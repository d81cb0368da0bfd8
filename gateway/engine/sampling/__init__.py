"""Choosing the next token from logits: penalties, temperature, top-k, top-p and min-p."""
