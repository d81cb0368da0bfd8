"""A training job from its request to a published version: inputs, stages, control, quote and manifest."""
