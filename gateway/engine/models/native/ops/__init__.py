"""The native kernels as functions of tensors, which are checked once, before the first step that uses them."""
