"""The CPU decoder on native kernels, for Llama-like bases."""
