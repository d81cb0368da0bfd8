"""Publish to the Hugging Face Hub, and import from it or from a local PEFT folder."""
