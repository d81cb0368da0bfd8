"""`/v1/organization/usage`: what was used, in buckets of time, as OpenAI has it. A project is a tenant.

A key sees its own tenant's usage, one with the scope admin everybody's.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Literal

from litestar import Request, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from tunery.gateway.api.http.errors import error_responses
from tunery.gateway.api.schemas.usage import (
    CompletionsBucket,
    CompletionsPage,
    CompletionsResult,
    EmbeddingsBucket,
    EmbeddingsPage,
    EmbeddingsResult,
)
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.gateway.tenancy.scopes import SCOPE, USAGE
from tunery.registry.errors import InvalidInput, UnknownName
from tunery.registry.usage.records import COMPLETIONS, EMBEDDINGS, GroupField, UsageQuery, UsageSum

__all__ = ["completions_usage", "embeddings_usage"]

Width = Literal["1m", "1h", "1d"]
Time = Annotated[int, QueryParameter(ge=0, lt=2**40)]
WIDTHS: dict[Width, tuple[int, int, int]] = {"1m": (60, 60, 1440), "1h": (3600, 24, 168), "1d": (86_400, 7, 31)}
"""Seconds of a bucket, and how many of them are answered by default and at most; OpenAI's."""
GROUPS: dict[str, GroupField | None] = {
    "project_id": "tenant",
    "api_key_id": "key",
    "model": "model",
    "batch": "batch",
    "user_id": None,
    "service_tier": None,
    "api_source": None,
}
"""What may be grouped by, and the field of the records; None for what is null here."""
MAX_SELECTED = 100
"""Values of one selection."""
_PAGE = re.compile(r"page_([0-9]{1,13})")


@get(
    "/v1/organization/usage/completions",
    operation_id="usageCompletions",
    summary="What chat, completions and responses used",
    responses=error_responses(400, 500),
    tags=["usage"],
    opt={SCOPE: USAGE},
)
async def completions_usage(
    request: Request[Any, Any, Any],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    start_time: Time,
    end_time: Annotated[int | None, QueryParameter(ge=0, lt=2**40)] = None,
    bucket_width: FromQuery[Width] = "1d",
    limit: Annotated[int | None, QueryParameter(ge=1, le=1440)] = None,
    page: FromQuery[str | None] = None,
    batch: FromQuery[bool | None] = None,
) -> CompletionsPage:
    """Sums of tokens and requests. `group_by`, `models`, `api_key_ids` and `project_ids` may be repeated."""
    asked = _Asked(request, principal, COMPLETIONS, start_time, end_time, bucket_width, limit, page, gateway, batch)
    sums = await asked.sums(gateway)
    data = [
        CompletionsBucket(start_time=start, end_time=end, results=[_completions(each) for each in sums.get(start, ())])
        for start, end in asked.buckets
    ]
    return CompletionsPage(data=data, has_more=asked.next_page is not None, next_page=asked.next_page)


@get(
    "/v1/organization/usage/embeddings",
    operation_id="usageEmbeddings",
    summary="What embeddings used",
    responses=error_responses(400, 500),
    tags=["usage"],
    opt={SCOPE: USAGE},
)
async def embeddings_usage(
    request: Request[Any, Any, Any],
    gateway: NamedDependency[Gateway],
    principal: NamedDependency[Principal],
    start_time: Time,
    end_time: Annotated[int | None, QueryParameter(ge=0, lt=2**40)] = None,
    bucket_width: FromQuery[Width] = "1d",
    limit: Annotated[int | None, QueryParameter(ge=1, le=1440)] = None,
    page: FromQuery[str | None] = None,
) -> EmbeddingsPage:
    """Sums of tokens and requests. `group_by`, `models`, `api_key_ids` and `project_ids` may be repeated."""
    asked = _Asked(request, principal, EMBEDDINGS, start_time, end_time, bucket_width, limit, page, gateway)
    sums = await asked.sums(gateway)
    data = [
        EmbeddingsBucket(start_time=start, end_time=end, results=[_embeddings(each) for each in sums.get(start, ())])
        for start, end in asked.buckets
    ]
    return EmbeddingsPage(data=data, has_more=asked.next_page is not None, next_page=asked.next_page)


class _Asked:
    """What a request asks for: its buckets, and the query for their sums."""

    def __init__(
        self,
        request: Request[Any, Any, Any],
        principal: Principal,
        endpoints: tuple[str, ...],
        start_time: int,
        end_time: int | None,
        width: Width,
        limit: int | None,
        page: str | None,
        gateway: Gateway,
        batch: bool | None = None,
    ) -> None:
        seconds, usual, most = WIDTHS[width]
        if limit is not None and limit > most:
            raise InvalidInput(f"limit is at most {most} with bucket_width {width}", param="limit")
        end = int(gateway.usage.now()) + 1 if end_time is None else end_time
        if end <= start_time:
            raise InvalidInput("end_time must be after start_time, which must not be in the future", param="end_time")
        first = _page_start(page, start_time)
        starts = range(first - first % seconds, end, seconds)
        shown = starts[: limit or usual]
        self.buckets = [(start, start + seconds) for start in shown]
        self.next_page = f"page_{shown[-1] + seconds}" if len(starts) > len(shown) else None
        projects = _values(request, "project_ids")
        if "admin" not in principal.scopes:
            # Whatever else is asked for is as if it were not there.
            projects = (principal.tenant,) if not projects or principal.tenant in projects else ()
            self._hidden = not projects
        else:
            self._hidden = False
        self._query = UsageQuery(
            start=max(first, start_time),
            end=min(end, shown[-1] + seconds) if shown else first,
            width=seconds,
            group=_groups(request),
            tenants=projects,
            keys=_values(request, "api_key_ids"),
            models=_values(request, "models"),
            endpoints=endpoints,
            batch=batch,
        )

    async def sums(self, gateway: Gateway) -> dict[int, list[UsageSum]]:
        """The sums by the start of their bucket."""
        found: dict[int, list[UsageSum]] = {}
        if not self._hidden and self.buckets:
            for each in await asyncio.to_thread(gateway.registry.usage.sums, self._query):
                found.setdefault(each.start, []).append(each)
        return found


def _completions(sums: UsageSum) -> CompletionsResult:
    return CompletionsResult(
        input_tokens=sums.input_tokens,
        output_tokens=sums.output_tokens,
        input_cached_tokens=sums.cached_tokens,
        input_uncached_tokens=sums.input_tokens - sums.cached_tokens,
        num_model_requests=sums.requests,
        project_id=sums.tenant,
        api_key_id=sums.key or None,
        model=sums.model,
        batch=None if sums.batch is None else bool(sums.batch),
    )


def _embeddings(sums: UsageSum) -> EmbeddingsResult:
    return EmbeddingsResult(
        input_tokens=sums.input_tokens,
        num_model_requests=sums.requests,
        project_id=sums.tenant,
        api_key_id=sums.key or None,
        model=sums.model,
    )


def _page_start(page: str | None, start: int) -> int:
    if page is None:
        return start
    match = _PAGE.fullmatch(page)
    if match is None:
        raise InvalidInput(f"{page[:40]!r} is no page; take next_page of the page before", param="page")
    return max(int(match[1]), start)


def _groups(request: Request[Any, Any, Any]) -> tuple[GroupField, ...]:
    named = _values(request, "group_by")
    for name in named:
        if name not in GROUPS:
            raise UnknownName("field", name, GROUPS, param="group_by")
    return tuple(dict.fromkeys(field for name in named if (field := GROUPS[name]) is not None))


def _values(request: Request[Any, Any, Any], name: str) -> tuple[str, ...]:
    """The values of a list, as OpenAI's clients write it (`name[]=a`) and as others do (`name=a`, `name=a,b`)."""
    given = [*request.query_params.getall(name, []), *request.query_params.getall(f"{name}[]", [])]
    values = [value for text in given for value in str(text).split(",") if value]
    if len(values) > MAX_SELECTED:
        raise InvalidInput(f"{name} has {len(values)} values; the limit is {MAX_SELECTED}", param=name)
    return tuple(dict.fromkeys(values))
