"""Gives what schemathesis makes up names of what there is, so that it gets past the checks that come first."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import schemathesis

VALUES: dict[str, list[Any]] = json.loads(os.environ["SCHEMATHESIS_VALUES"])
"""What to write for path parameters, query parameters and fields of a body."""
SHARE = 0.7
chance = random.Random(0)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Replace most of what is made up; nothing in a request that is wrong on purpose."""
    if case.meta is not None and case.meta.generation.mode.is_negative:
        return
    for part in (case.path_parameters, case.query, case.body):
        for name in sorted(set(VALUES).intersection(part if isinstance(part, dict) else ())):
            if part[name] is not None and chance.random() < SHARE:
                part[name] = chance.choice(VALUES[name])
