"""What the trainer says of a few rows is what its model says, and reads back as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tunery.plugins.training import load_base
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.gates.reference import read_reference, record_reference

CPU = torch.device("cpu")
ROWS = [
    Example([5, 6, 7, 8, 9], [False, False, True, True, True], 1),
    Example([9, 8, 7, 6], [True, False, True, False], 2),  # nothing comes before the first token
    Example([4, 4, 4], [False, True, True], 3),
]


def test_every_trained_token_has_its_own_log_probability(tiny_base_folder: Path, tmp_path: Path) -> None:
    model = load_base(tiny_base_folder, quant="none", dtype=torch.float32, device=CPU).train()
    record_reference(model, ROWS, tmp_path / "reference.json", device=CPU, dtype=torch.float32)
    assert model.training
    reference = read_reference(tmp_path / "reference.json")
    assert reference is not None
    assert reference.rows == ROWS
    assert [len(log_probs) for log_probs in reference.log_probs] == [3, 1, 2]
    for row, log_probs in zip(ROWS, reference.log_probs, strict=True):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        wanted = [float(scores[at - 1, row.ids[at]]) for at in range(1, len(row.ids)) if row.trained[at]]
        assert log_probs == pytest.approx(wanted, abs=1e-5)


def test_nothing_recorded_reads_as_nothing(tmp_path: Path) -> None:
    assert read_reference(tmp_path / "reference.json") is None
