"""Conversations to token ids and back, the same for training examples and for serving prompts."""
