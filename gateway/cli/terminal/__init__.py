"""What every command shares: its context, errors, output streams and tables."""
