"""Several gateway processes in front of one engine: `tunery serve --workers N`."""
