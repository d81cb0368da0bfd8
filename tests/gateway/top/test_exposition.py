"""Rates and quantiles from two scrapes."""

from __future__ import annotations

import pytest

from tunery.gateway.top.exposition import Exposition, read_exposition

BEFORE = """
# TYPE requests counter
requests_total{adapter="a",outcome="stop"} 10
requests_total{adapter="b",outcome="stop"} 5
# TYPE first histogram
first_bucket{le="0.1"} 4
first_bucket{le="0.2"} 4
first_bucket{le="+Inf"} 4
"""
AFTER = """
# TYPE requests counter
requests_total{adapter="a",outcome="stop"} 16
requests_total{adapter="b",outcome="stop"} 2
requests_total{adapter="c",outcome="error"} 4
# TYPE first histogram
first_bucket{le="0.1"} 8
first_bucket{le="0.2"} 12
first_bucket{le="+Inf"} 14
"""


@pytest.fixture
def pair() -> tuple[Exposition, Exposition]:
    return read_exposition(BEFORE, at=100.0), read_exposition(AFTER, at=102.0)


def test_counters_become_rates_also_when_they_begin_again(pair: tuple[Exposition, Exposition]) -> None:
    before, after = pair
    assert after.rate("requests_total", before, label="adapter") == {"a": 3.0, "b": 1.0, "c": 2.0}
    assert after.by("requests_total", "outcome") == {"stop": 18.0, "error": 4.0}
    assert after.rate("requests_total", after) == {}
    assert after.value("nothing") == 0


def test_quantiles_are_of_what_was_observed_since(pair: tuple[Exposition, Exposition]) -> None:
    before, after = pair
    assert after.quantile("first", 0.2, before) == pytest.approx(0.05)
    assert after.quantile("first", 0.5, before) == pytest.approx(0.125)
    assert after.quantile("first", 0.95, before) == pytest.approx(0.2)
    assert after.quantile("first", 0.5, after) is None
    assert after.quantile("nothing", 0.5, before) is None
    # The server was restarted, so that all of it is new.
    assert before.quantile("first", 0.5, after) == pytest.approx(0.05)


def test_what_is_no_exposition_is_refused() -> None:
    with pytest.raises(ValueError):
        read_exposition("{'a': 1}", at=0.0)
