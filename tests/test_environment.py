"""The environment of the tests themselves."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.mark.skipif("OMP_NUM_THREADS" not in os.environ, reason="one process has all cores")
def test_torch_computes_on_the_share_of_the_cores_that_it_was_given() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
