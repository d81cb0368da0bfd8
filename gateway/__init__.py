"""The gateway: HTTP, the built-in engine and the command line."""
