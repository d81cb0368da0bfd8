"""Base models of any supported architecture through transformers' modelling code, on CPUs and GPUs."""
