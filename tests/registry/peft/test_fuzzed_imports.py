"""Whatever an adapter's files say, an import ends with a version or a refusal, and a refusal leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from tests.registry.artifacts import make_adapter
from tunery.registry import Base
from tunery.registry.errors import ArtifactRefused, TuneryError
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.peft.fields import DEFAULTS
from tunery.registry.peft.safetensors_header import read_header
from tunery.registry.registry import Registry

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(allow_nan=True),
    st.sampled_from(
        ["", "q_proj", "all-linear", ".*", "(", "(a|a)*b", "[[a]", "(?i)q", "x" * 600, "LORA", "../../etc", "\ud800"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["q_proj", "(", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from([*DEFAULTS, "use_new_lora", "tunery_x", "runtime_config"])
fuzzed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def attempt(registry: Registry, base: Base, tmp_path: Path) -> Callable[..., None]:
    """Import a folder whose configuration, or whose weights, are changed; check that it ends well."""
    folder = make_adapter(tmp_path / "fuzz")
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    sound = json.loads(config.read_text()), weights.read_bytes()

    def attempt(changes: dict[str, Any], raw: bytes | None = None) -> None:
        config.write_text(json.dumps({**sound[0], **changes}))
        weights.write_bytes(sound[1] if raw is None else raw)
        before = len(registry.versions()), sorted(registry.blobs.all())
        refused = False
        try:
            import_folder(registry, folder, Destination(adapter="a/b", base=base, actor="t"))
        except TuneryError:
            refused = True
        assert not refused or (len(registry.versions()), sorted(registry.blobs.all())) == before
        assert list(registry.home.staging.iterdir()) == []

    return attempt


@pytest.mark.slow
@fuzzed
@given(changes=st.dictionaries(NAMES, VALUES, max_size=3))
def test_any_configuration_comes_in_or_is_refused(attempt: Callable[..., None], changes: dict[str, Any]) -> None:
    attempt(changes)


SIZES = st.one_of(st.integers(-1, 9), st.sampled_from([2**31, 2**63, 2**64, 1.5, True, None, "2"]))
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "Q4", "", 3, None]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(SIZES, max_size=3),
        "extra": st.just(1),
    },
)
KEYS = st.sampled_from(
    [
        "base_model.model.model.layers.0.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.q_proj.lora_B.weight",
        "_orig_mod.base_model.model.model.layers.0.q_proj.lora_A.weight",
        "../../../etc/passwd",
        "__metadata__",
        "a.b\x00c",
        "",
        ".",
        "lora_A",
        "modules_to_save.x.y",
    ]
)


@pytest.mark.slow
@fuzzed
@given(header=st.dictionaries(KEYS, ENTRY | SCALARS, max_size=4), data=st.binary(max_size=64))
def test_any_header_is_read_as_safetensors_reads_it_or_refused(
    attempt: Callable[..., None], tmp_path: Path, header: dict[str, Any], data: bytes
) -> None:
    text = json.dumps(header).encode()
    raw = len(text).to_bytes(8, "little") + text + data
    path = tmp_path / "header.safetensors"
    path.write_bytes(raw)
    attempt({}, raw)
    assert_read_alike(path)


@pytest.mark.slow
@fuzzed
@given(
    raw=st.one_of(
        st.binary(max_size=80),
        st.builds(
            lambda length, rest: length.to_bytes(8, "little") + rest, st.integers(0, 2**64 - 1), st.binary(max_size=64)
        ),
        st.text(max_size=30).map(
            lambda text: (b := text.encode(errors="surrogatepass")) and len(b).to_bytes(8, "little") + b
        ),
    )
)
def test_any_bytes_are_refused(attempt: Callable[..., None], raw: bytes) -> None:
    attempt({}, raw)


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"a": 1}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": "x"}',
    ],
)
def test_headers_that_readers_would_read_differently_are_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(ArtifactRefused, match="not a sound safetensors file"):
        read_header(path)


def assert_read_alike(path: Path) -> None:
    """What is not refused, safetensors itself reads, and finds the same in it."""
    try:
        entries = read_header(path)
    except ArtifactRefused:
        return
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AssertionError(f"{path.read_bytes()!r} is read here and not by safetensors: {error}") from error
    assert shapes == {name: entry.shape for name, entry in entries.items()}
