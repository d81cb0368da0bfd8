"""The HTTP API: one module for each resource, and packages for what they share.

A handler reads from top to bottom: `request` parses the body, the resolver finds the adapter, the gateway waits for the
engine and admits the request, and `response` generates the answer and formats it. `http` surrounds every request,
`schemas` has the bodies, and `state` has the parts that handlers work with. Imports go from resources to response,
request, state, http and schemas, never back.
"""
