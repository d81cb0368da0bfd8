"""Turning a request body into what the engine is asked for."""
