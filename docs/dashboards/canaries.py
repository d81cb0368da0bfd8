"""A version beside the one that it is to replace."""

from __future__ import annotations

from dashboards.expressions import ADAPTER, INSTANCE, OURS, TOP, quantiles, rate, share, top, total
from dashboards.panels import Dashboard, Panel, one

__all__ = ["CANARIES"]

VERSIONS = "adapter, version"
ALIASES = f'count_values by (adapter, alias) ("version", max by (adapter, alias) (tunery_alias_version{{{OURS}}}))'


def _by_alias(expression: str) -> str:
    """What versions are measured at, under the aliases that point to them."""
    return f"{ALIASES} * on (adapter, version) group_left () ({expression})"


CANARIES = Dashboard(
    "tunery-canaries",
    "Tunery: canaries",
    "A version beside the one that it is to replace. The last 100 versions that answered have series; choose one adapter.",
    (INSTANCE, ADAPTER),
    {
        "Which version is where": (
            Panel(
                "Versions behind aliases",
                "none",
                "A step is a move; `tunery adapters history ADAPTER` has who, when and why.",
                one("{{adapter}} {{alias}}", total("tunery_alias_version", OURS, by="adapter, alias", how="max")),
            ),
            Panel(
                "Requests by alias",
                "reqps",
                "What the versions behind the aliases answered, under whatever name they were asked for.",
                one(
                    "{{adapter}} {{alias}} ({{version}})",
                    _by_alias(rate("tunery_version_requests_total", OURS, by=VERSIONS)),
                ),
            ),
            Panel(
                "Requests by version",
                "reqps",
                f"The {TOP} busiest.",
                one("{{adapter}}@{{version}}", top(rate("tunery_version_requests_total", OURS, by=VERSIONS))),
            ),
        ),
        "How they compare": (
            Panel(
                "Failed share by alias",
                "percentunit",
                "A canary that fails more than production is to be rolled back: tunery adapters rollback ADAPTER canary.",
                one(
                    "{{adapter}} {{alias}} ({{version}})",
                    _by_alias(
                        share(
                            rate("tunery_version_requests_total", OURS, by=VERSIONS, where='result="failed"'),
                            f"({rate('tunery_version_requests_total', OURS, by=VERSIONS)} > 0)",
                        )
                    ),
                ),
                (0.005, 0.03),
            ),
            Panel(
                "p95 of a whole request by version",
                "s",
                "Long answers take long: compare it with their length.",
                quantiles("tunery_version_request_seconds", OURS, by=VERSIONS, shares=(0.95,)),
            ),
            Panel(
                "Tokens of an answer by alias",
                "short",
                "On average. A canary whose answers get much longer often fails to stop.",
                one(
                    "{{adapter}} {{alias}} ({{version}})",
                    _by_alias(
                        share(
                            rate("tunery_version_generated_tokens_total", OURS, by=VERSIONS),
                            f"({rate('tunery_version_requests_total', OURS, by=VERSIONS)} > 0)",
                        )
                    ),
                ),
            ),
            Panel(
                "Share cancelled by version",
                "percentunit",
                "Clients that left before the answer ended.",
                one(
                    "{{adapter}}@{{version}}",
                    share(
                        rate("tunery_version_requests_total", OURS, by=VERSIONS, where='result="cancelled"'),
                        f"({rate('tunery_version_requests_total', OURS, by=VERSIONS)} > 0)",
                    ),
                ),
                (0.05, 0.2),
            ),
        ),
    },
)
