"""Who is preempted: which running sequences give up their place, their pages and their adapters for others.

A preempted sequence goes back to the front of its tenant's waiting queue and is recomputed later, from whatever pages
of it the prefix cache still has. There are three reasons: a tenant below its share of the batch wants to start a
sequence (`victims_for_admission`), a running sequence needs another page (`victim_for_growth`), and a sequence has
waited too long for its adapters to fit into memory (`victims_for_adapters`). For all of them the background goes first,
and it never preempts anybody but itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows

from tunery.gateway.engine.scheduling.fairness import VirtualTokenCounter
from tunery.gateway.engine.scheduling.page_allocator import PageAllocator
from tunery.gateway.engine.scheduling.sequence import Sequence

__all__ = ["MIN_RUN_SECONDS", "victim_for_growth", "victims_for_adapters", "victims_for_admission"]

MIN_RUN_SECONDS = 1.0
"""Seconds that a sequence has run before it is preempted for another one's adapters."""


def victims_for_admission(
    tenant: str,
    running: Rows[Sequence],
    fairness: VirtualTokenCounter,
    pages: PageAllocator,
    *,
    max_batch: int,
    new_pages: int,
    cached: Rows[int],
) -> list[Sequence] | None:
    """The sequences to preempt so that one more of `tenant` fits, newest first; empty when it fits as things are.

    The background goes first. Then they are taken from the tenant with the largest share of the batch (running
    sequences by weight), as long as that share stays at least as large as the one `tenant` will have. None when there
    is not enough room even so. The sequence needs `new_pages` pages besides the `cached` ones that it shares.
    """
    victims: list[Sequence] = []
    background = sorted((s for s in running if s.background), key=lambda s: s.admission)
    candidates = sorted((s for s in running if not s.background), key=lambda s: s.admission)
    count = Counter(s.tenant for s in candidates)
    wanted = fairness.share(tenant, count[tenant] + 1)
    places, available = max_batch - len(running), pages.available - pages.count_unheld(cached)
    while places < 1 or available < new_pages:
        if background:
            victim = background.pop()
        else:
            largest = max((s.tenant for s in candidates), key=lambda t: fairness.share(t, count[t]), default=tenant)
            if largest == tenant or fairness.share(largest, count[largest] - 1) < wanted:
                return None
            victim = next(s for s in reversed(candidates) if s.tenant == largest)
            candidates.remove(victim)
            count[largest] -= 1
        victims.append(victim)
        places += 1
        available += pages.count_held_once([page for page in victim.pages if page not in cached])
    return victims


def victim_for_growth(running: Rows[Sequence], fairness: VirtualTokenCounter) -> Sequence:
    """The sequence to preempt for a page that a running one needs: the newest in the background, or else the newest of
    the tenant that was charged most."""
    charged = {s.tenant: fairness.counter(s.tenant) for s in running}
    return max(running, key=lambda s: (s.background, 0.0 if s.background else charged[s.tenant], s.admission))


def victims_for_adapters(blocking: Rows[Sequence], now: float) -> list[Sequence]:
    """The sequences to preempt so that another adapter fits into memory: all on the composition that has run longest.

    `blocking` are the running sequences that hold other adapters. One that has only just started, or has not produced a
    token since, is spared: its work would be lost, perhaps again and again. Empty when all are spared. The background
    is not: all of it goes first.
    """
    if background := [s for s in blocking if s.background]:
        return background
    ripe = [s for s in blocking if now - s.since > MIN_RUN_SECONDS and len(s.tokens) > s.length_at_start]
    if not ripe:
        return []
    oldest = min(ripe, key=lambda s: s.since)
    return [s for s in ripe if s.digest == oldest.digest]
