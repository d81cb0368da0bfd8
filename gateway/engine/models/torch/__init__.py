"""Any base through transformers' modelling code, on CPUs and GPUs."""
