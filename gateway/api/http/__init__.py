"""What surrounds every request: middleware, guards, limits, errors, and the API documentation."""
