"""Webhooks: what there is to say about jobs and aliases, and which configured endpoint has heard it."""
