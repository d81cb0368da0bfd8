"""Turns request bodies into what the engine is to generate."""
