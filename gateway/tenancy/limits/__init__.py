"""What tenants and keys may use, checked before each request and settled after it."""
