"""Commands for whoever runs a server for several tenants: what they may, what they use, who changed what."""
