"""`python -m tunery.gateway.cli` is `tunery`."""

from tunery.gateway.cli import main

main()
