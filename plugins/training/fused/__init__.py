"""Training's own mathematics, where it is known to equal transformers' and PEFT's: rows without padding, the loss, low-rank pairs.

Everything here has a plain way beside it, which is taken wherever a model is not understood.
"""
