"""A receiver of webhooks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.webhooks.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver
