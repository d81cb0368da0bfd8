"""From the `data_source` of a run to a run that waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tunery.gateway.api.evaluations.planning import Asked, check_outputs, count_rows
from tunery.gateway.api.schemas.evals import RunCreate
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.plugins.evals.graders import read_graders
from tunery.plugins.evals.plan import RunPlan
from tunery.registry.errors import InvalidInput, NotFound, near_or
from tunery.registry.evals.records import EvalRun, Evaluation
from tunery.registry.evals.store import NewRun
from tunery.registry.storage import leases

__all__ = ["add_run", "read_asked"]

_KINDS = ("completions", "responses")
_FIELDS = ("type", "source", "input_messages", "model", "sampling_params")


class _Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rows are: an uploaded file, or one that is made of what the request has."""

    name: str
    path: Path
    file: str | None = None


def add_run(
    data: RunCreate, evaluation: Evaluation, plan: RunPlan, *, gateway: Gateway, principal: Principal
) -> EvalRun:
    """Queue a run of a plan; raise InvalidInput or NotFound that names the field that is wrong."""
    source = data.data_source
    with _rows(source.get("source"), gateway, principal) as rows:
        formats = gateway.plugins.formats()
        if (ready := gateway.engine.ready) is not None:
            check_outputs(plan.sampling, read_graders(evaluation.criteria), context=ready.context_length)
        count = count_rows(evaluation, plan, rows.path, name=rows.name, formats=formats)
        return gateway.registry.evals.add_run(
            NewRun(
                eval=evaluation.id,
                name=data.name or "",
                request=_shown(source),
                plan=msgspec.to_builtins(plan),
                details=data.metadata,
                data_name=rows.name,
                row_count=count,
                base_digest=gateway.resolver.base.digest,
                file=rows.file,
                path=None if rows.file else rows.path,
            )
        )


def read_asked(data: RunCreate) -> Asked:
    """What a request asks for; raise InvalidInput for a field that is wrong or not supported."""
    source = data.data_source
    kind = source.get("type")
    if kind == "jsonl":
        raise InvalidInput(
            "data_source.type jsonl has answers made elsewhere, which are not supported; use completions and a model",
            code="unsupported_parameter",
            param="data_source.type",
        )
    if kind not in _KINDS:
        raise InvalidInput(
            f"data_source.type is {str(kind)[:80]!r}; it is one of {', '.join(_KINDS)}", param="data_source.type"
        )
    for name, value in source.items():
        if name not in _FIELDS and value is not None:
            raise InvalidInput(
                f"data_source.{name[:80]} is not supported; {near_or(name[:80], _FIELDS, 'leave it out')}",
                code="unsupported_parameter",
                param="data_source",
            )
    model = source.get("model")
    if not isinstance(model, str):
        raise InvalidInput("data_source.model must be the name of a model", param="data_source.model")
    return Asked(
        model=model,
        against=data.tunery.against if data.tunery else None,
        sampling=_object(source, "sampling_params"),
        input_messages=_object(source, "input_messages"),
    )


def _object(source: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = source.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"data_source.{name} must be an object", param=f"data_source.{name}")
    return value


@contextmanager
def _rows(source: Any, gateway: Gateway, principal: Principal) -> Iterator[_Rows]:
    """The rows that a source means, as a file while the block runs."""
    param = "data_source.source"
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "file_id" and isinstance(source.get("id"), str):
        yield _uploaded(source["id"], gateway, principal, param=f"{param}.id")
    elif kind == "file_content" and isinstance(source.get("content"), list):
        with leases.staged(gateway.registry.home.staging, "eval") as folder:
            path = folder / "rows.jsonl"
            path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in source["content"]))
            yield _Rows(name="file_content", path=path)
    elif kind in ("stored_completions", "responses"):
        raise InvalidInput(
            f"{param}.type {kind} is not supported: answers are not kept here",
            code="unsupported_parameter",
            param=param,
        )
    else:
        raise InvalidInput(
            f'{param} is {{"type": "file_id", "id": …}} or {{"type": "file_content", "content": [{{"item": …}}]}}',
            param=param,
        )


def _uploaded(file_id: str, gateway: Gateway, principal: Principal, *, param: str) -> _Rows:
    try:
        file = gateway.registry.data_files.get(file_id, tenant=principal.tenant)
    except NotFound as error:
        raise NotFound(f"No such File object: {file_id[:80]}", code="file_not_found", param=param) from error
    return _Rows(name=file.name, path=gateway.registry.data_files.present_path(file), file=file.id)


def _shown(source: dict[str, Any]) -> dict[str, Any]:
    """The data source as it is shown: rows that came with the request are in the results."""
    rows = source["source"]
    return source | ({"source": rows | {"content": []}} if rows["type"] == "file_content" else {})
