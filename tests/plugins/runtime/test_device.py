"""Devices that are not there are refused by name, before anything is started for them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tunery.plugins.runtime.device import check_device, resolve_device
from tunery.registry.errors import InvalidInput


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "mps", "", "cuda:0:1"])
@pytest.mark.parametrize("check", [resolve_device, check_device])
def test_nonsense_is_refused_with_what_there_is(check: object, name: str) -> None:
    with pytest.raises(InvalidInput, match="use cpu, cuda, cuda:1 … or auto") as caught:
        check(name)  # type: ignore[operator]
    assert caught.value.code == "invalid_device"


@pytest.mark.parametrize(("count", "message"), [(0, "finds no CUDA device"), (2, "this machine has cuda:0, cuda:1")])
def test_a_gpu_that_is_not_there_is_refused(count: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InvalidInput, match=message):
        resolve_device("cuda:9")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, device in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert resolve_device("auto") == device
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [resolve_device(name) for name in ("cpu", "cuda", "cuda:3")] == ["cpu", "cuda", "cuda:3"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_server_answers_without_loading_torch() -> None:
    check = "import sys; from tunery.plugins.runtime.device import check_device; check_device({!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check.format("auto")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(InvalidInput, match="finds no CUDA device"):
        check_device("cuda")
