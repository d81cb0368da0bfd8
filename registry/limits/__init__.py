"""Limits of tenants and keys: which differ from the configured ones, and what is counted for them in the database."""
