"""Commands for whoever runs a server for several tenants."""
