"""The extension surface and everything that plugs into it."""
