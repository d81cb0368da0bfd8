"""Measure what a training job and interactive streams cost each other on one server.

The gaps between tokens of eight streams with a job beside them over without it, and the job's speed beside the streams
over alone. The job is submitted over HTTP and run by the server's own worker, with the settings of the configuration.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunery.gateway.bench.serving import percentile, served_base, server, stream
from tunery.gateway.bench.suite import Row
from tunery.registry.errors import Unavailable

__all__ = ["measure_job_beside"]

STREAMS = 8
ROUNDS = 3
SECONDS = 10.0
"""How long the job is watched alone, each time."""
STEPS = 100_000
"""More than the job will take."""
PATIENCE = 600.0


def measure_job_beside(folder: str, data: Path, say: Callable[[str], None]) -> list[Row]:
    """Both ratios, in a home that is gone afterwards. `folder` is that of a base, `data` rows to train on."""
    gaps: dict[str, list[float]] = {"with": [], "without": []}
    speeds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as home, server(folder, home=Path(home)) as port:
        api = _Api(port)
        base = served_base(port)
        _streams(port, base)
        for _ in range(ROUNDS):
            gaps["without"].append(percentile(_streams(port, base)))
        with api.job(base, data) as job:
            for _ in range(ROUNDS):
                speeds["without"].append(api.speed(job, lambda: time.sleep(SECONDS)))
                speeds["with"].append(api.speed(job, lambda: gaps["with"].append(percentile(_streams(port, base)))))
                say(
                    f"a job beside {STREAMS} streams: gaps {1000 * gaps['with'][-1]:.0f} ms, {speeds['with'][-1]:.0f} tok/s; "
                    f"apart: {1000 * statistics.median(gaps['without']):.0f} ms, {speeds['without'][-1]:.0f} tok/s"
                )
    return [
        _ratio(
            "gap_beside_job", f"99th percentile between tokens of {STREAMS} streams beside a job, over without", gaps
        ),
        _ratio("job_beside_streams", f"a job's speed beside {STREAMS} streams, over alone", speeds),
    ]


def _ratio(name: str, title: str, figures: dict[str, list[float]]) -> Row:
    value = statistics.median(figures["with"]) / statistics.median(figures["without"])
    return Row(name=name, title=title, value=round(value, 3), unit="×", detail=dict(figures))


def _streams(port: int, base: str) -> list[float]:
    """The gaps of all streams, in seconds."""
    gaps: list[float] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            gaps.extend(stream(port, base))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return gaps


class _Api:
    """The server's fine-tuning API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> dict[str, Any]:
        """The JSON that answers a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            text = answer.read()
        if answer.status != 200:
            raise Unavailable(
                f"{method} {path} was answered with {answer.status}: {text[:400].decode(errors='replace')}"
            )
        decoded: dict[str, Any] = json.loads(text)
        return decoded

    @contextmanager
    def job(self, base: str, data: Path) -> Iterator[str]:
        """A job that trains until the block ends; it has made its first steps."""
        asked = {
            "model": base,
            "training_file": self._upload(data),
            "tunery": {"parameters": {"max_steps": STEPS, "eval_every": 0, "checkpoint_every": 0}},
        }
        job = str(self.call("POST", "/v1/fine_tuning/jobs", json.dumps(asked).encode())["id"])
        deadline = time.monotonic() + PATIENCE
        while len(self._steps(job)) < 2:
            state = self.call("GET", f"/v1/fine_tuning/jobs/{job}")
            if state["status"] not in ("queued", "running") or time.monotonic() > deadline:
                raise Unavailable(f"the job does not train: it is {state['status']}, {state['error']}")
            time.sleep(0.5)
        try:
            yield job
        finally:
            self.call("POST", f"/v1/fine_tuning/jobs/{job}/cancel")
            while self.call("GET", f"/v1/fine_tuning/jobs/{job}")["status"] == "running":
                time.sleep(0.5)

    def _upload(self, data: Path) -> str:
        boundary = uuid.uuid4().hex
        form = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{boundary}\r\n'
        form += f'Content-Disposition: form-data; name="file"; filename="{data.name}"\r\n\r\n'
        body = form.encode() + data.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        return str(self.call("POST", "/v1/files", body, f"multipart/form-data; boundary={boundary}")["id"])

    def speed(self, job: str, meanwhile: Callable[[], object]) -> float:
        """The job's tokens per second in the steps that end while `meanwhile` runs, or in the one that ends next."""
        before = self._steps(job)[-1]
        meanwhile()
        time.sleep(1.0)  # steps are reported at most half a second late
        while (after := self._steps(job)[-1])["step"] == before["step"]:
            time.sleep(0.1)
        return float((after["tokens"] - before["tokens"]) / (after["seconds"] - before["seconds"]))

    def _steps(self, job: str) -> list[dict[str, Any]]:
        """The job's last steps, oldest first."""
        events = self.call("GET", f"/v1/fine_tuning/jobs/{job}/events?limit=20")["data"]
        return [event["tunery"] for event in reversed(events) if event["tunery"]["kind"] == "step"]
