"""Rows of data files as tokenized examples, and examples as batches."""
