"""What happens around every request: middleware, guards, limits, errors and documentation."""
