"""Ids differ, in threads and in forked processes too."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

from tunery.plugins.runtime.unique_id import unique_id


def test_ids_are_hexadecimal_and_differ_between_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: unique_id(), range(5000)))
    assert len(set(ids)) == 5000
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


def test_a_forked_process_has_ids_of_its_own() -> None:
    unique_id()  # fetches many
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, unique_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert theirs not in {unique_id() for _ in range(300)}
