"""Base models in memory and their forward pass: `native/` for Llama-like ones on CPUs, `torch/` for all others."""
