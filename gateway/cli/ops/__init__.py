"""Commands for whoever operates Tunery: check an installation, back it up, watch it, and look at its configuration."""
