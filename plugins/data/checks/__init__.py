"""Checks of training data; the built-in ones are listed here without importing them."""

from __future__ import annotations

from tunery.plugins.hookspecs import CheckInfo, Severity

__all__ = ["CHECKS"]


def _check(name: str, severity: Severity, entrypoint: str, summary: str) -> CheckInfo:
    return CheckInfo(name=name, severity=severity, summary=summary, entrypoint=f"{__name__}.rules.{entrypoint}")


CHECKS = (
    _check("schema", "error", "schema:Schema", "A line that is not a row of a known format."),
    _check(
        "encoding", "warning", "encoding:Encoding", "Byte order marks, mixed line ends, mojibake, NUL, half characters."
    ),
    _check("special_token", "warning", "special_tokens:SpecialTokens", "A control token spelled out in a text."),
    _check("template", "error", "rendering:TemplateRefused", "A row that the base's chat template refuses."),
    _check("no_trainable_token", "error", "rendering:NoTrainableToken", "A row with nothing to train on."),
    _check("end_of_turn_not_trained", "error", "rendering:EndOfTurn", "An answer whose end the model would not learn."),
    _check("truncation", "warning", "rendering:Truncation", "A row that is longer than max_length."),
    _check("token_length", "info", "rendering:TokenLength", "How long rows are, in tokens of the base."),
    _check("extra_column", "warning", "extra_columns:ExtraColumn", "A column that the row's format does not read."),
    _check(
        "turn_order",
        "warning",
        "turn_order:TurnOrder",
        "No user message, or a system message that is not the first.",
    ),
    _check(
        "tool_call",
        "error",
        "tool_calls:ToolCalls",
        "Calls of functions that are not in tools, results without a call.",
    ),
    _check("repeated_prompt", "error", "unfinished:RepeatedPrompt", "An answer that begins with the whole prompt."),
    _check("placeholder", "warning", "unfinished:Placeholder", "A template's {{name}}, [NAME] or <your company>."),
    _check("cut_answer", "warning", "unfinished:CutAnswer", "An answer that ends in the middle of a sentence."),
    _check("duplicate", "error", "duplicates:Duplicate", "A row that equals an earlier one, but for white space."),
    _check("near_duplicate", "warning", "duplicates:NearDuplicate", "A row that barely differs from an earlier one."),
    _check(
        "conflicting_answers",
        "error",
        "duplicates:ConflictingAnswers",
        "A prompt that an earlier row answers differently.",
    ),
    _check("leakage", "error", "duplicates:Leakage", "A held-out row that is trained on, exactly or nearly."),
    _check(
        "pii",
        "warning",
        "personal_data:PersonalData",
        "E-mail addresses, phone numbers; cards, bank accounts, social security are errors.",
    ),
    _check("secret", "error", "secrets:Secrets", "API keys, tokens, private keys, passwords."),
    _check("diversity", "info", "diversity:Diversity", "Answers that are too similar."),
)
