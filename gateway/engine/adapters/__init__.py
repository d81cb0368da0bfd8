"""LoRA adapters in memory: reading, loading, eviction."""
