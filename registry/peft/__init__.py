"""PEFT's adapter format: its configuration, its tensor names, and what an imported adapter must be."""
