"""How many examples hypothesis tries: the same few in every run of the suite, or with MORE_EXAMPLES
that many times more, new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MORE = int(os.environ.get("MORE_EXAMPLES", "1"))


def often(examples: int, *, steps: int = 50) -> settings:
    """`examples` of a test that takes as long as it takes, of up to `steps` rules where it is a state machine."""
    return settings(
        max_examples=examples * MORE,
        stateful_step_count=steps,
        deadline=None,
        derandomize=MORE == 1,
        suppress_health_check=[HealthCheck.too_slow],
    )
