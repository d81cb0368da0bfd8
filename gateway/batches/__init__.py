"""Runs batches inside a server: their requests are answered as those over HTTP are, behind all of them."""
