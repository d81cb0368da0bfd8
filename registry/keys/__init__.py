"""API keys: who may do what, and with which adapters."""
