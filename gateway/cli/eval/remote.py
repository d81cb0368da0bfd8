"""An evaluation by a server, over its HTTP API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunery.registry.errors import InvalidInput, NotFound, TuneryError, Unavailable

__all__ = ["RemoteEval"]

POLL_SECONDS = 0.5
TIMEOUT = 600.0
_ERRORS: dict[int, type[TuneryError]] = {400: InvalidInput, 404: NotFound, 429: Unavailable, 503: Unavailable}


class RemoteEval:
    """A client of the server at `url`, with or without `/v1`; use it in a `with` block."""

    def __init__(self, url: str, *, key: str | None) -> None:
        import httpx2

        place = f"{url.rstrip('/').removesuffix('/v1')}/v1"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._url = url
        self._client = httpx2.Client(base_url=place, headers=headers, timeout=TIMEOUT)
        self._failure: type[Exception] = httpx2.HTTPError

    def __enter__(self) -> RemoteEval:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def run(
        self,
        data: Path,
        *,
        graders: list[dict[str, Any]],
        source: dict[str, Any],
        against: str | None,
        done: Callable[[int, int], None],
    ) -> dict[str, Any]:
        """Upload the rows, run the evaluation and return the run when it has ended. Raises what the server says.

        When the run is refused, nothing that was made for it is left on the server.
        """
        run = self._start(data, graders=graders, source=source, against=against)
        while run["status"] in ("queued", "in_progress"):
            done(run["result_counts"]["total"], run["tunery"]["rows"])
            time.sleep(POLL_SECONDS)
            run = self._call("GET", f"/evals/{run['eval_id']}/runs/{run['id']}")
        return run

    def _start(
        self, data: Path, *, graders: list[dict[str, Any]], source: dict[str, Any], against: str | None
    ) -> dict[str, Any]:
        left: list[str] = []
        try:
            with data.open("rb") as file:
                uploaded = self._call("POST", "/files", files={"file": (data.name, file)}, data={"purpose": "evals"})
            left.append(f"/files/{uploaded['id']}")
            config = {"type": "custom", "item_schema": {"type": "object"}}
            made = self._call(
                "POST", "/evals", json={"name": data.name, "data_source_config": config, "testing_criteria": graders}
            )
            left.append(f"/evals/{made['id']}")
            body = {
                "name": data.name,
                "data_source": source | {"source": {"type": "file_id", "id": uploaded["id"]}},
                "tunery": {"against": against},
            }
            return self._call("POST", f"/evals/{made['id']}/runs", json=body)
        except TuneryError as error:
            if not isinstance(error.__cause__, self._failure):  # else nobody knows whether the run was made
                self._remove(left)
            raise

    def _remove(self, paths: list[str]) -> None:
        """Delete what is at the paths, as far as the server lets it: what was refused is said, whatever is left."""
        for path in reversed(paths):
            with suppress(TuneryError):
                self._call("DELETE", path)

    def items(self, run: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The results of all rows."""
        place, after = f"/evals/{run['eval_id']}/runs/{run['id']}/output_items?limit=100", ""
        while True:
            page = self._call("GET", f"{place}{after}")
            yield from page["data"]
            if not page["has_more"]:
                return
            after = f"&after={page['last_id']}"

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **options)
        except self._failure as error:
            raise Unavailable(f"{self._url} does not answer ({error}); is `tunery serve` running?") from error
        if response.is_success:
            answer: dict[str, Any] = response.json()
            return answer
        try:
            said = response.json()["error"]
            message, code, param = said["message"], said.get("code"), said.get("param")
        except (ValueError, KeyError, TypeError):
            message, code, param = f"{self._url} answered {response.status_code}", None, None
        raise _ERRORS.get(response.status_code, TuneryError)(message, code=code, param=param)
