"""Who asks: keys, and what each may do and see."""
