"""Evaluations over HTTP: from a request to a run that is planned, and runs and rows as clients see them."""
