"""Commands about tenants: what they use, and what they may."""
