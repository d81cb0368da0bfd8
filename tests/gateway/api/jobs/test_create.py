"""What `POST /v1/fine_tuning/jobs` makes of a body: one meaning, or a refusal that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.api.conftest import Served
from tunery.plugins.testing import write_pairs, write_rows
from tunery.registry.jobs.queue import BODY_DIGEST
from tunery.registry.records import Job, JobRequest

JOBS = "/v1/fine_tuning/jobs"


async def upload(served: Served, path: Path) -> str:
    return (await served.client.files.create(file=path, purpose="fine-tune")).id


@pytest.fixture
async def rows(served: Served) -> str:
    return await upload(served, write_rows(served.folder / "rows.jsonl", 20))


@pytest.fixture
async def pairs(served: Served) -> str:
    return await upload(served, write_pairs(served.folder / "pairs.jsonl", 20))


async def create(served: Served, file: str, **fields: Any) -> dict[str, Any]:
    response = await served.post(JOBS, {"model": "tiny", "training_file": file} | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def refusal(served: Served, file: str, **fields: Any) -> tuple[str, str, str]:
    """Param, code and message; nothing is queued."""
    before = served.gateway.registry.jobs()
    response = await served.post(JOBS, {"model": "tiny", "training_file": file} | fields)
    assert response.status_code == 400, response.text
    assert served.gateway.registry.jobs() == before
    error = response.json()["error"]
    return error["param"], error["code"], error["message"]


def queued(served: Served, job: dict[str, Any]) -> tuple[Job, JobRequest]:
    found = served.gateway.registry.job(job["id"])
    assert found.request is not None
    return found, found.request


# -- fields that would have no effect ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"hyperparameters": {"epochs": 2}}, "hyperparameters.epochs", "did you mean 'n_epochs'?"),
        ({"hyperparameters": {"zzz": 0}}, "hyperparameters.zzz", "known: 'batch_size', 'beta', 'learning_rate_mult"),
        ({"method": {"type": "dpo", "foo": 1}}, "method.foo", "known: 'dpo', 'supervised', 'type'"),
        ({"method": {"type": "supervised", "supervised": {"foo": 1}}}, "method.supervised.foo", "'hyperparameters'"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"epochs": 1}}}},
            "method.supervised.hyperparameters.epochs",
            "did you mean 'n_epochs'?",
        ),
        (
            {"method": {"type": "supervised", "dpo": {"hyperparameters": {"beta": 0.1}}}},
            "method.dpo",
            "method.type is 'supervised'",
        ),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "method.type is 'dpo'"),
    ],
)
async def test_a_field_without_effect_is_refused_by_name(
    fields: dict[str, Any], param: str, message: str, served: Served, rows: str
) -> None:
    shown, code, text = await refusal(served, rows, **fields)
    assert (shown, code) == (param, "unsupported_parameter")
    assert param in text
    assert message in text


async def test_an_unknown_method_is_named_whatever_its_options(served: Served, rows: str) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": {}}}
    assert (await refusal(served, rows, method=method))[:2] == ("method.type", "unsupported_method")


async def test_null_is_as_good_as_nothing(served: Served, rows: str) -> None:
    method = {"type": "supervised", "dpo": None, "reinforcement": None, "supervised": {"hyperparameters": None}}
    job = await create(served, rows, method=method, hyperparameters={"n_epochs": None, "epochs": None})
    assert job["hyperparameters"]["n_epochs"] == "auto"


# -- what is said twice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"hyperparameters": {"n_epochs": 2}, "tunery": {"parameters": {"epochs": 3}}},
            "tunery.parameters",
            "hyperparameters.n_epochs is 2, and tunery.parameters.epochs is 3",
        ),
        (
            {"hyperparameters": {"batch_size": 2}, "tunery": {"parameters": {"batch_size": "4"}}},
            "tunery.parameters",
            "hyperparameters.batch_size is 2, and tunery.parameters.batch_size is 4",
        ),
        (
            {"seed": 6, "tunery": {"parameters": {"seed": 5}}},
            "tunery.parameters",
            "seed is 6, and tunery.parameters.seed is 5",
        ),
        (
            {"hyperparameters": {"learning_rate_multiplier": 2}, "tunery": {"parameters": {"learning_rate": 0.1}}},
            "tunery.parameters",
            "hyperparameters.learning_rate_multiplier is 2",
        ),
        (
            {
                "hyperparameters": {"n_epochs": 2},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
            },
            "hyperparameters.n_epochs",
            "hyperparameters.n_epochs is 2, and that of the method is 3",
        ),
        ({"method": {"type": "dpo"}, "tunery": {"trainer": "lora"}}, "tunery.trainer", "method.type is 'dpo'"),
        ({"method": {"type": "supervised"}, "tunery": {"trainer": "dpo"}}, "tunery.trainer", "one of the method 'dpo'"),
    ],
)
async def test_a_contradiction_is_refused(
    fields: dict[str, Any], param: str, message: str, served: Served, rows: str
) -> None:
    shown, code, text = await refusal(served, rows, **fields)
    assert (shown, code) == (param, "invalid_parameter")
    assert message in text


async def test_the_same_said_twice_is_said_once(served: Served, rows: str) -> None:
    job = await create(
        served,
        rows,
        seed=5,
        hyperparameters={"n_epochs": 2, "learning_rate_multiplier": "auto"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        tunery={
            "trainer": "qlora",
            "parameters": {"epochs": "2", "seed": 5, "batch_size": "auto", "learning_rate": 0.1},
        },
    )
    found, request = queued(served, job)
    assert found.trainer == "qlora"
    assert request.parameters == {"epochs": 2, "batch_size": 4, "seed": 5, "learning_rate": 0.1}
    assert (job["seed"], job["method"]["type"]) == (5, "supervised")
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": "auto"}


async def test_the_job_object_shows_what_the_trainers_own_words_say(served: Served, pairs: str) -> None:
    parameters = {"epochs": "1.5", "batch_size": 2, "seed": "7", "beta": 0.5}
    job = await create(served, pairs, tunery={"trainer": "dpo", "parameters": parameters})
    assert (job["seed"], job["method"]["type"]) == (7, "dpo")
    assert job["method"]["dpo"]["hyperparameters"] == {
        "n_epochs": 1.5, "batch_size": 2, "learning_rate_multiplier": "auto", "beta": 0.5,
    }  # fmt: skip
    assert "beta" not in job["hyperparameters"]


async def test_a_seed_that_is_left_open_is_chosen_and_shown(served: Served, rows: str) -> None:
    for tunery in (None, {"parameters": {"seed": "auto"}}):
        job = await create(served, rows, tunery=tunery)
        assert queued(served, job)[1].parameters == {"seed": job["seed"]}


# -- rows of the wrong kind --------------------------------------------------------------------------------------------


async def test_rows_that_a_trainer_does_not_learn_from_are_refused(served: Served, rows: str, pairs: str) -> None:
    dpo = {"type": "dpo"}
    for file, more, param, message in (
        (rows, {"method": dpo}, "training_file", f"{rows} has single answers"),
        (pairs, {}, "training_file", f"{pairs} has preference pairs"),
        (pairs, {"tunery": {"trainer": "qlora"}}, "training_file", "learns from single answers"),
        (pairs, {"method": dpo, "validation_file": rows}, "validation_file", f"{rows} has single answers"),
        (rows, {"validation_file": pairs}, "validation_file", f"{pairs} has preference pairs"),
    ):
        shown, code, text = await refusal(served, file, **more)
        assert (shown, code) == (param, f"invalid_{param}")
        assert message in text
    assert (await create(served, pairs, method=dpo))["method"]["type"] == "dpo"


async def test_a_file_that_is_not_checked_yet_is_taken(served: Served, rows: str) -> None:
    served.gateway.registry.data_files.checked(rows, status="uploaded", details=None, findings=None)
    await create(served, rows, method={"type": "dpo"})


async def test_rows_are_not_trained_on_and_held_out(served: Served, rows: str) -> None:
    again = await upload(served, served.folder / "rows.jsonl")
    for file in (rows, again):
        shown, code, text = await refusal(served, rows, validation_file=file)
        assert (shown, code) == ("validation_file", "invalid_validation_file")
        assert f"{file} has the rows of the training file" in text
    other = await upload(served, write_rows(served.folder / "other.jsonl", 5, start=50))
    assert (await create(served, rows, validation_file=other))["validation_file"] == other
    await create(served, rows, validation_file=rows, tunery={"allow": ["leakage"]})


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_a_key_stands_for_one_body(served: Served, rows: str) -> None:
    async def post(content: str) -> httpx.Response:
        headers = {"idempotency-key": "k", "content-type": "application/json"}
        async with httpx.AsyncClient(verify=False) as client:
            return await client.post(served.url + JOBS, content=content, headers=headers)

    first = await post(f'{{"model": "tiny", "training_file": "{rows}", "tunery": {{"allow": [], "priority": 1}}}}')
    same = await post(
        f'{{"tunery":{{"priority":1,"allow":[],"from":null}},"training_file":"{rows}","model":"tiny","seed":null}}'
    )
    assert same.json() == first.json()
    other = await post(f'{{"model": "tiny", "training_file": "{rows}", "tunery": {{"allow": [], "priority": 2}}}}')
    assert other.status_code == 400
    error = other.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
    assert first.json()["id"] in error["message"]
    (job,) = served.gateway.registry.jobs()
    assert job.details is not None
    assert len(job.details[BODY_DIGEST]) == 64


# -- versions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pin", ["@7", "@canary", "@A B", "@0"])
async def test_a_version_that_does_not_exist_is_a_model_that_is_not_available(
    pin: str, served: Served, rows: str
) -> None:
    served.publish("default/support")
    shown, code, text = await refusal(served, rows, model=f"default/support{pin}")
    assert (shown, code) == ("model", "model_not_available")
    assert f"Model default/support{pin} is not available for fine-tuning or does not exist." in text


@pytest.mark.parametrize("name", ["日本", "Ü", "..", "-"])
async def test_a_suffix_without_letters_has_an_adapter_of_its_own(name: str, served: Served, rows: str) -> None:
    job = await create(served, rows, suffix=name)
    other = await create(served, rows, suffix=f"{name}{name}")
    again = await create(served, rows, suffix=name)
    adapters = [each["tunery"]["adapter"] for each in (job, other, again)]
    assert adapters[0] == adapters[2] != adapters[1]
    assert adapters[0].startswith("default/model-")
    assert (await create(served, rows, suffix="a..b"))["tunery"]["adapter"] == "default/a.b"
