"""Who is preempted: the tenant above its share first, its newest sequence first, and nobody who has
only just started."""

from __future__ import annotations

from tests.gateway.engine.scheduling.scheduler_harness import composition
from tunery.gateway.engine.messages import Generate
from tunery.gateway.engine.sampling_params import SamplingParams
from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.page_allocator import PageAllocator
from tunery.gateway.engine.scheduling.preemption import (
    MIN_RUN_SECONDS,
    victim_for_growth,
    victims_for_adapters,
    victims_for_admission,
)
from tunery.gateway.engine.scheduling.sequence import Sequence


def running(tenant: str, admission: int, *, adapter: int = 0, since: float = 0.0) -> Sequence:
    """A sequence of `tenant` that started as number `admission` and has generated one token."""
    sampling = SamplingParams(max_tokens=8)
    request = Generate(
        id=str(admission), prompt=(1, 2), sampling=sampling, composition=composition(adapter), tenant=tenant
    )
    sequence = Sequence(request, eos_ids=frozenset(), now=since)
    sequence.start((), admission, since)
    sequence.append(3)
    return sequence


def victims(
    tenant: str, batch: list[Sequence], *, pages: PageAllocator | None = None, new_pages: int = 1
) -> list[Sequence] | None:
    """Those preempted so that one more sequence of `tenant` joins a full batch; `b` has weight 2."""
    fairness = VirtualTokenCounter({"b": 2.0})
    pages = pages or PageAllocator(100)
    return victims_for_admission(tenant, batch, fairness, pages, max_batch=len(batch), new_pages=new_pages, cached=[])


def test_the_newest_sequence_of_the_tenant_with_the_largest_share_gives_way() -> None:
    batch = [running("a", 1), running("a", 3), running("a", 2), running("b", 4)]
    assert victims("c", batch) == [batch[1]]
    assert victims("b", batch) == [batch[1]]


def test_a_tenant_at_its_share_preempts_nobody() -> None:
    batch = [running("a", 1), running("c", 2)]
    assert victims("a", batch) is None
    assert victims("c", batch) is None
    assert victims("b", batch) is None  # one of two would leave the other with less than b's first


def test_as_many_as_the_pages_need_and_none_when_they_would_not_do() -> None:
    pages = PageAllocator(4)
    batch = [running("a", number) for number in (1, 2, 3)]
    for sequence in batch:
        sequence.pages = pages.allocate(1)
    assert victims("c", batch, pages=pages, new_pages=3) == [batch[2], batch[1]]
    assert victims("c", batch, pages=pages, new_pages=4) is None


def test_a_page_comes_from_the_newest_sequence_of_the_tenant_charged_most() -> None:
    fairness = VirtualTokenCounter()
    fairness.charge("a", output=5)
    fairness.charge("b", output=9)
    batch = [running("a", 5), running("b", 1), running("b", 2)]
    assert victim_for_growth(batch, fairness) is batch[2]


def test_an_adapters_memory_comes_from_the_composition_that_has_run_longest() -> None:
    now = 10.0
    batch = [
        running("a", 1, adapter=1, since=3.0),
        running("a", 2, adapter=2, since=2.0),
        running("b", 3, adapter=2, since=5.0),
        running("b", 4, adapter=2, since=now - MIN_RUN_SECONDS / 2),
    ]
    assert victims_for_adapters(batch, now) == batch[1:3]
    batch[1].length_at_start = batch[2].length_at_start = 3  # no token since they started
    assert victims_for_adapters(batch, now) == batch[:1]
    assert victims_for_adapters(batch[1:], now) == []
