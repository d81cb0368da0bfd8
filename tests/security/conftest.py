"""A gateway that asks for keys, with two tenants."""

from __future__ import annotations

import pytest

from tests.gateway.api.conftest import one_document, served, tokenizer_folder
from tunery.registry.configuration.settings import ServeSettings

__all__ = ["one_document", "served", "settings", "tokenizer_folder"]


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(base="tiny", max_batch=4, max_waiting=400)
