"""Watch a server from outside, by what it says of itself: requests, adapters, tenants and jobs."""
