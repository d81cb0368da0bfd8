"""Structured output: which tokens keep a request's output within its JSON schema, regular expression or grammar."""
