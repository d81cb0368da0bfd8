"""The gateway: the HTTP API, the built-in engine and the command line.

`serve` runs the server, `app` is its Litestar application, and `api` has the handlers. `resolver` turns model names
into adapter versions, `engine` generates tokens in a process of its own, and `metrics` counts what happens. `cli`,
`bench` and `gates` are the command line, the benchmarks, and the checks that a version passes before it is served.
"""
