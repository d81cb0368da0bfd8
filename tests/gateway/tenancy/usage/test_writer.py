"""The writer of usage: through failures of the disk, and when its process is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tunery.gateway.tenancy.usage.month import month_end, month_start
from tunery.gateway.tenancy.usage.writer import FLUSH_SECONDS, UsageWriter
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.usage.records import UsageQuery, UsageRecord
from tunery.registry.usage.usage import MonthTotals, Usage

ALL = UsageQuery(start=0, end=2**40)
SERVER = """
import asyncio, os, sys, time
from pathlib import Path
from tunery.gateway.tenancy.usage.writer import UsageWriter
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.usage.records import UsageRecord

class Logged(UsageWriter):
    def _write(self, records):
        read = super()._write(records)
        os.write(log, b"written %d\\n" % len(records))
        return read

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def serve():
    usage = Logged(Registry.open(Home(Path(sys.argv[1]))).usage, days=1)
    await usage.start()
    while True:
        usage.add(UsageRecord(at=time.time(), tenant="acme", model="tiny", endpoint="x", input_tokens=1))
        os.write(log, b"used\\n")
        await asyncio.sleep(0.002)

asyncio.run(serve())
"""


def record(at: float, tokens: int = 5) -> UsageRecord:
    return UsageRecord(at=at, tenant="acme", key="k", model="tiny", endpoint="x", input_tokens=tokens)


class Failing(Usage):
    """Usage on a disk that fails when it is told to: before records are written, or when they are read back."""

    writing = reading = False

    def add(self, records: Sequence[UsageRecord]) -> None:
        if self.writing:
            raise StorageFailed("the disk is full")
        super().add(records)

    def tokens_after(self, number: int, *, start: float, end: float) -> MonthTotals:
        if self.reading:
            raise StorageFailed("the disk is gone")
        return super().tokens_after(number, start=start, end=end)


async def test_what_cannot_be_written_is_kept_and_nothing_is_written_twice(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    usage = Failing(registry._database, clock=time.time)
    writer = UsageWriter(usage, days=1)
    writer.add(record(writer.now()))
    assert writer.month.used("acme") == 0
    await writer.start()
    usage.writing = True
    writer.add(record(writer.now()))
    await writer.flush()
    await writer.flush()
    assert len([each for each in caplog.records if "kept" in each.message]) == 1
    assert (writer.month.used("acme"), usage.sums(ALL)) == (5, [])
    usage.writing, usage.reading = False, True
    writer.add(record(writer.now()))
    await writer.flush()
    await writer.flush()
    assert writer.month.used("acme") == 10
    usage.reading = False
    registry.usage.add([record(writer.now(), 100), record(month_start(writer.now()) - 1, 1000)])
    await writer.flush()
    assert (writer.month.used("acme"), writer.month.used("acme", "k"), writer.month.used("acme", "")) == (110, 110, 0)
    writer.add(record(writer.now()))
    await writer.stop()
    assert [each.requests for each in usage.sums(ALL)] == [5]
    assert usage.sums(ALL)[0].input_tokens == 1115


async def test_a_new_month_begins_with_nothing(registry: Registry) -> None:
    now = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    writer = UsageWriter(registry.usage, days=9999, clock=lambda: now)
    assert month_start(now) == datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert month_end(now) == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    await writer.start()
    writer.add(record(now))
    await writer.flush()
    assert writer.month.used("acme") == 5
    now += 2
    writer.add(record(now, 7))
    await writer.flush()
    assert writer.month.used("acme") == 7
    # A clock that is set back counts the month that it says.
    now -= 2
    await writer.flush()
    assert writer.month.used("acme") == 5
    await writer.stop()


def test_a_kill_loses_the_last_second_at_most(home: Home, registry: Registry, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(home.root), str(log)])
    try:
        deadline = time.monotonic() + 120
        while not (sums := registry.usage.sums(ALL)) or sums[0].requests < 50:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    lines = log.read_text().splitlines()
    (total,) = registry.usage.sums(ALL)
    exact = registry.usage.sums(UsageQuery(start=0, end=2**40, width=60))
    assert sum(each.requests for each in exact) == total.requests
    # What was lost came after the last records that were written, which are written twice a second.
    written = sum(int(line.split()[1]) for line in lines if line.startswith("written"))
    assert written <= total.requests <= lines.count("used") + 1
    assert FLUSH_SECONDS < 1


async def test_a_writer_that_is_stopped_while_it_writes_has_written_all(registry: Registry) -> None:
    writer = UsageWriter(registry.usage, days=1)
    await writer.start()
    for _ in range(20):
        writer.add(record(writer.now()))
    flushing = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    writer.add(record(writer.now()))
    await writer.stop()
    assert registry.usage.sums(ALL)[0].requests == 21
