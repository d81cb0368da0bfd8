"""Base models in memory and their forward pass: `native/` on CPUs, `torch/` on everything else."""
