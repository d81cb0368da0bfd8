"""The built-in plugins."""

from __future__ import annotations

import pytest

from tunery.plugins.discovery import load_plugins
from tunery.plugins.manager import Plugins


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins(allow=())
