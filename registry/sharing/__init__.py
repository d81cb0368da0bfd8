"""Adapters that tenants share: with which others, and whether with the KV cache of their prompts' prefixes."""
