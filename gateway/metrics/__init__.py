"""Prometheus metrics: `table` declares every metric, `recorder` records and serves them.

To add a metric, add its row to `table`. What the engine's Stats or Ready report needs nothing else; anything else is
recorded by a method of `recorder.Metrics`. `python docs/generate.py` then adds it to docs/metrics.md.
"""
