"""Work is looked for after a commit, and now and then."""

from __future__ import annotations

from tunery.registry.storage.work_watch import WorkWatch


def test_it_is_looked_for_until_nothing_is_found_and_again_after_a_commit() -> None:
    changes = [7]
    watch = WorkWatch(lambda: changes[0], seconds=1e9)
    assert watch.due()
    assert watch.due()
    watch.found_nothing()
    assert not watch.due()
    changes[0] = 3
    assert watch.due()


def test_a_commit_while_it_is_looked_for_is_not_overlooked() -> None:
    changes = [7]
    watch = WorkWatch(lambda: changes[0], seconds=1e9)
    assert watch.due()
    changes[0] = 8
    watch.found_nothing()
    assert watch.due()


def test_it_is_looked_for_now_and_then_without_a_commit() -> None:
    watch = WorkWatch(lambda: 7, seconds=0.0)
    assert watch.due()
    watch.found_nothing()
    assert watch.due()
