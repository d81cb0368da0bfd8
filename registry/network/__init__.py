"""The one rule for addresses that Tunery connects to on its own: what is public, and what must be allowed explicitly."""
