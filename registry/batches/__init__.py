"""Batches: requests from a file that gateways answer in turn, and the claims that keep two from answering the same."""
