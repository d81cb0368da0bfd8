"""The renderer that turns conversations into token ids, for training labels and for serving prompts alike."""
