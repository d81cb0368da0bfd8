"""A sliding window against the plain list of what was used when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunery.registry.limits.window import SLOT_SECONDS, WINDOW_SECONDS, SlidingWindow

LIMIT = 100
Step = tuple[float, int, float]
STEPS = st.lists(
    st.tuples(
        st.floats(min_value=0, max_value=40, allow_nan=False),  # seconds since the last step
        st.integers(min_value=1, max_value=120),  # what is asked for
        st.floats(min_value=0, max_value=1),  # the part of it that is given back at once
    ),
    max_size=60,
)


@given(STEPS)
def test_in_no_minute_more_than_the_limit_is_used(steps: list[Step]) -> None:
    window, now, log = SlidingWindow(), 1000.0, list[tuple[float, int]]()
    for pause, amount, unused in steps:
        now += pause
        wait = window.wait(amount, LIMIT, now)
        assert (wait is None) == (amount > LIMIT)
        if wait == 0:
            slot = window.add(amount, now)
            window.give_back(int(amount * unused), slot)
            log.append((now, amount - int(amount * unused)))
        elif wait is not None:
            # Whoever comes back then is admitted, and it is not for nothing that he waits.
            assert 0 < wait <= WINDOW_SECONDS + SLOT_SECONDS
            later = SlidingWindow(window._slots)
            assert later.wait(amount, LIMIT, now + wait + 1e-6) == 0
        within = sum(used for at, used in log if now - WINDOW_SECONDS < at)
        assert within <= LIMIT
        assert window.used(now) >= within
        assert window.used(now) <= sum(used for at, used in log if now - WINDOW_SECONDS - SLOT_SECONDS <= at)


@given(STEPS)
def test_what_is_given_back_is_free_again(steps: list[Step]) -> None:
    window, now = SlidingWindow(), 0.0
    for pause, amount, _ in steps:
        now += pause
        before = window.used(now)
        window.give_back(amount, window.add(amount, now))
        assert window.used(now) == before == 0
        assert window.empty_in(now) == 0


def test_a_clock_that_steps_back_a_little_counts_in_the_slot_before() -> None:
    window = SlidingWindow()
    window.add(5, 100.0)
    window.add(5, 99.0)
    assert window.used(159.0) == 10
    assert window.used(165.1) == 0
