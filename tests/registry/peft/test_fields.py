"""Every field of PEFT's LoraConfig is accounted for, with PEFT's default, and refused by name if not applied."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.registry.artifacts import make_adapter
from tunery.registry import Base, NewVersion
from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.fields import APPLIED, DEFAULTS, FOREIGN, IGNORED, check_fields
from tunery.registry.registry import Registry

REFUSED = sorted(set(DEFAULTS) - APPLIED - IGNORED)


def lora_defaults() -> dict[str, Any]:
    from peft import LoraConfig

    return {
        field.name: field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        for field in dataclasses.fields(LoraConfig)
        if field.name != "runtime_config"  # never saved
    }


def refused(config: dict[str, Any]) -> ArtifactRefused:
    with pytest.raises(ArtifactRefused) as caught:
        check_fields({"peft_type": "LORA", **config})
    return caught.value


def test_each_default_is_pefts() -> None:
    # A new version of PEFT with a new setting fails here, until somebody has said what becomes of it.
    assert dict(DEFAULTS) == lora_defaults()
    assert set(DEFAULTS) >= APPLIED | IGNORED - {"runtime_config"}
    assert not APPLIED & IGNORED


def test_what_peft_saves_by_default_is_accepted() -> None:
    from peft import LoraConfig

    check_fields(LoraConfig(task_type="CAUSAL_LM").to_dict())
    check_fields(dict(DEFAULTS))
    check_fields(dict.fromkeys(DEFAULTS))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", [True, {"a": 1}, [[0, 1]], "on", 1])
def test_a_field_that_is_not_applied_is_refused_by_name_when_it_is_on(name: str, value: object) -> None:
    error = refused({name: value})
    assert (error.code, f"{name}=" in error.message) == ("unsupported_adapter", True)


@pytest.mark.parametrize("value", [True, {"a": 1}, ["x"], "on", 0.5])
def test_a_field_that_nobody_knows_is_refused_by_name_when_it_is_on(value: object) -> None:
    error = refused({"use_super_lora": value})
    assert (error.code, "use_super_lora=" in error.message) == ("unsupported_adapter", True)
    off: object
    for off in (None, False, 0, "", [], {}):
        check_fields({"use_super_lora": off})


@pytest.mark.parametrize("name", sorted(FOREIGN | {"tunery_note"}))
def test_fields_of_other_trainers_that_only_say_how_training_ran_are_accepted(name: str) -> None:
    check_fields({name: 1e-6})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "yes") for name, default in DEFAULTS.items() if isinstance(default, bool) and name in APPLIED),
        ("use_dora", 1),
        ("bias", "some"),
        ("bias", True),
        ("task_type", "SEQ_CLS"),
        ("init_lora_weights", "svd_of_the_base"),
        ("init_lora_weights", "PISSA"),
        ("init_lora_weights", 3),
    ],
)
def test_a_value_that_peft_does_not_have_is_refused_by_name(name: str, value: object) -> None:
    error = refused({name: value})
    assert error.code == "unsupported_adapter"
    assert name in error.message


@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        ({"lora_alpha": 1e39}, "artifact_nonfinite", r"lora_alpha=1e\+39"),
        ({"lora_alpha": 10**400}, "artifact_nonfinite", "lora_alpha"),
        ({"alpha_pattern": {"q_proj": -1e300}}, "artifact_nonfinite", "alpha_pattern"),
        ({"lora_alpha": None}, "artifact_incomplete", "lora_alpha"),
        ({"r": 10**30}, "artifact_incomplete", "r="),
        ({"exclude_modules": ["q_proj"]}, "artifact_incomplete", "would not be used"),
        ({"exclude_modules": {"q_proj": 1}}, "artifact_incomplete", "exclude_modules"),
        ({"target_modules": "(unclosed"}, "artifact_incomplete", "not a regular expression"),
        ({"target_modules": "up_proj", "layers_to_transform": [0]}, "artifact_incomplete", "layers_to_transform"),
        ({"layers_to_transform": [7]}, "artifact_incomplete", "would not be used"),
        ({"layers_to_transform": ["0"]}, "artifact_incomplete", "layers_to_transform"),
        ({"layers_to_transform": [0], "layers_pattern": "(.*)*x"}, "artifact_unsafe", "layers_pattern"),
        ({"use_dora": True}, "artifact_incomplete", "lora_magnitude_vector"),
        ({"use_dora": True, "lora_bias": True}, "artifact_incomplete", "PEFT refuses"),
    ],
)
def test_what_would_mean_something_else_in_peft_is_refused_at_import(
    registry: Registry, base: Base, tmp_path: Path, config: dict[str, Any], code: str, message: str
) -> None:
    folder = make_adapter(tmp_path / "a", **config)
    with pytest.raises(ArtifactRefused, match=message) as caught:
        registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t")
        )
    assert caught.value.code == code
