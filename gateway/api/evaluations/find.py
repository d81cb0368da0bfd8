"""Find an evaluation, or a run of one, of the tenant who asks."""

from __future__ import annotations

from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.evals.records import EvalRun, Evaluation

__all__ = ["find_eval", "find_run"]

MAX_ID = 100
"""Characters of an id."""


def find_eval(eval_id: str, gateway: Gateway, principal: Principal) -> Evaluation:
    """An evaluation of the tenant; raise NotFound (eval_not_found)."""
    if len(eval_id) > MAX_ID:
        raise InvalidInput(f"no id of an evaluation has {len(eval_id)} characters", param="eval_id")
    return gateway.registry.evals.get(eval_id, tenant=principal.tenant)


def find_run(eval_id: str, run_id: str, gateway: Gateway, principal: Principal) -> tuple[Evaluation, EvalRun]:
    """An evaluation of the tenant and a run of it; raise NotFound (eval_not_found, eval_run_not_found)."""
    evaluation = find_eval(eval_id, gateway, principal)
    if len(run_id) > MAX_ID:
        raise InvalidInput(f"no id of a run has {len(run_id)} characters", param="run_id")
    try:
        return evaluation, gateway.registry.evals.run(run_id, eval_id=evaluation.id)
    except NotFound as error:
        raise NotFound(
            f"there is no run {run_id} of {evaluation.id}", code="eval_run_not_found", param="run_id"
        ) from error
