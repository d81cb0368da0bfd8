"""Benchmarks of serving and training, on workloads that other systems can run too."""
