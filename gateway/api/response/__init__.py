"""Turns the engine's tokens into response bodies and streams."""
