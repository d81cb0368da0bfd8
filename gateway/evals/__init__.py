"""Evaluations in a gateway: planning a run, asking models behind interactive requests, grading, and summing up."""
