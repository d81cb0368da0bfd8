"""Tokens of an OpenID Connect issuer: its keys, what a token must say, and whose it is."""
