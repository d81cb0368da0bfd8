"""Change what a base's JSON files say."""

from __future__ import annotations

import json
from pathlib import Path


def edit_json(folder: Path, *, name: str = "config.json", **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
