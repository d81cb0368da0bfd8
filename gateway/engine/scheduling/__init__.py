"""Continuous batching: the scheduler, its sequences and queues, and the KV cache page allocator."""
