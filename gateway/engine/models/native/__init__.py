"""Llama-like base models on CPUs, computed by native kernels."""
