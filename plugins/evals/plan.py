"""What a run does, in a form that is stored with it and means the same to every server: exact versions, no aliases."""

from __future__ import annotations

from typing import Any

import msgspec

from tunery.registry.errors import NotFound

__all__ = ["Model", "RunPlan"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the client named it, and the exact `reference` that it meant when the run was made.

    `adapter`, `number` and `digest` are those of the version, where it is exactly one.
    """

    name: str
    reference: str
    adapter: str | None = None
    number: int | None = None
    digest: str | None = None


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The `models` to measure, the second one to compare the first with; `judges` are the graders' by their names.

    `sampling` are the fields of each chat request, `input_messages` as OpenAI has them.
    """

    models: list[Model]
    judges: dict[str, Model] = {}
    sampling: dict[str, Any] = {}
    input_messages: dict[str, Any] | None = None

    def judge(self, name: str) -> str:
        """The exact reference of a judge; raise NotFound."""
        if name not in self.judges:
            raise NotFound(f"the judge {name[:80]!r} is not part of this run", code="model_not_found")
        return self.judges[name].reference
