"""Faster mathematics for training where it equals transformers' and PEFT's: padding-free batches, fused layers with LoRA, the loss.

Everything has a plain torch version beside it, and models that are not known are left to transformers.
"""
