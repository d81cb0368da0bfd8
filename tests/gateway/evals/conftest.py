"""The application with a FakeEngine, as the tests of the HTTP API have it."""

from __future__ import annotations

from tests.gateway.api.conftest import one_document, served, settings, tokenizer_folder

__all__ = ["one_document", "served", "settings", "tokenizer_folder"]
