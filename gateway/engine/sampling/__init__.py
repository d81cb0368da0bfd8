"""Choosing the next token: the sampler and structured output."""
