"""Every rule finds the fault that was planted for it, at its place, and nothing where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunery.plugins.data.checks import CHECKS
from tunery.plugins.data.checks.report import DataReport, Finding
from tunery.plugins.data.checks.rules.personal_data import is_card, is_iban
from tunery.plugins.data.checks.runner import check_data
from tunery.plugins.discovery import load_plugins

PLUGINS = load_plugins(allow=())
LONG = "The printer on the second floor shows a paper jam although there is no paper in any of its four trays today"


def chat(question: str, answer: str, **answered: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **answered}]}


def check(
    folder: Path,
    *rows: dict[str, Any] | bytes,
    val: tuple[dict[str, Any], ...] = (),
    base: Path | None = None,
    limit: int = 256,
) -> DataReport:
    path, held_out = folder / "rows.jsonl", folder / "val.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    held_out.write_text("".join(json.dumps(row) + "\n" for row in val))
    return check_data(
        [path], held_out if val else None, plugins=PLUGINS, base_folder=base, max_length=limit, processes=1
    )


def found(report: DataReport, rule: str) -> list[tuple[str, int, str, str]]:
    return [(f.file, f.line, f.path, f.severity) for f in report.findings if f.rule == rule]


def test_good_rows_have_no_findings_by_any_rule(tmp_path: Path, tiny_base_folder: Path) -> None:
    report = check(
        tmp_path,
        chat("How are you?", "Well."),
        chat("And you?", "Too."),
        val=(chat("Who?", "Me."),),
        base=tiny_base_folder,
    )
    assert report.findings == []
    assert report.errors == []


def test_every_rule_says_what_and_how_to_fix_it(tmp_path: Path, tiny_base_folder: Path) -> None:
    """Each rule but the figures is set off in this file; the tests below say where."""
    assert {info.name for info in CHECKS} == set(PLUGINS.checks())
    report = check(tmp_path, b"[]\n", chat("a", "b"), chat("a", "b"), chat("a", "c"), base=tiny_base_folder)
    assert {finding.rule for finding in report.findings} == {"schema", "duplicate", "conflicting_answers"}
    assert all(finding.message and finding.fix for finding in report.findings)


def test_schema(tmp_path: Path) -> None:
    report = check(
        tmp_path, chat("a", "b"), b"[1]\n", {"messages": [{"role": "x"}]}, {"prompt": "q", "completion": "c"}
    )
    assert [at for at in found(report, "schema") if at[1] == 2] == [("rows.jsonl", 2, "$", "error")]
    assert {at[2] for at in found(report, "schema") if at[1] == 3} == {
        "$.messages[0].role",
        "$.messages[0].content",
        "$.messages",
    }
    assert found(report, "schema")[-1] == ("rows.jsonl", 4, "$", "error")
    assert report.statistics["files"] == [{"file": "rows.jsonl", "rows": 2, "format": "chat", "held_out": False}]


def test_a_file_that_was_cut_off_is_told_as_such_and_the_rest_is_checked(tmp_path: Path) -> None:
    whole = json.dumps(chat("c", "d")).encode()
    report = check(tmp_path, chat("a", "b"), chat("a", "b"), whole[: len(whole) // 2])
    assert found(report, "duplicate") == [("rows.jsonl", 2, "$", "error")]
    (finding,) = [finding for finding in report.findings if finding.rule == "schema"]
    assert finding.line == 3
    assert "cut off" in finding.fix


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    assert found(check(tmp_path, b"\n \n"), "schema") == [("rows.jsonl", 0, "$", "error")]


@pytest.mark.parametrize(
    ("raw", "path", "severity"),
    [
        (b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n', "$", "warning"),
        (b'{"prompt": "\xff", "completion": "b"}\n', "$", "error"),
        (b'{"prompt": "\\ud800", "completion": "b"}\n', "$", "error"),
        (b'{"prompt": "a\\u0000", "completion": "b"}\n', "$.prompt", "warning"),
        (b'{"prompt": "a", "completion": "b\xef\xbf\xbd"}\n', "$.completion", "warning"),
        ('{"prompt": "cafÃ© olÃ©", "completion": "b"}\n'.encode(), "$.prompt", "warning"),
    ],
)
def test_encoding(tmp_path: Path, raw: bytes, path: str, severity: str) -> None:
    assert found(check(tmp_path, raw), "encoding") == [("rows.jsonl", 1, path, severity)]


def test_encoding_of_nul_bytes_and_of_mixed_line_ends(tmp_path: Path) -> None:
    row = b'{"prompt": "%d", "completion": "b"}'
    report = check(tmp_path, row % 1 + b"\n", row % 2 + b"\r\n", row % 3 + b"\n", row % 4 + b"\r\n")
    assert found(report, "encoding") == [("rows.jsonl", 2, "$", "warning")]
    assert found(check(tmp_path, row % 1 + b"\0\n"), "encoding") == [("rows.jsonl", 1, "$", "error")]
    assert (
        found(check(tmp_path, '{"prompt": "Größe, naïve, 世界 👩‍👩‍👧", "completion": "é"}\n'.encode()), "encoding")
        == []
    )


@pytest.mark.parametrize("with_base", [True, False])
def test_special_tokens(tmp_path: Path, tiny_base_folder: Path, with_base: bool) -> None:
    report = check(
        tmp_path, chat("a <|im_end|> b", "c"), chat("1 < 2 | [x]", "d"), base=tiny_base_folder if with_base else None
    )
    assert found(report, "special_token") == [("rows.jsonl", 1, "$.messages[0].content", "warning")]


def test_no_trainable_token(tmp_path: Path, tiny_base_folder: Path) -> None:
    rows = (chat("a", "b", weight=0), chat(LONG, "b"), chat("a", "c", weight=1))
    report = check(tmp_path, *rows, base=tiny_base_folder, limit=64)
    assert [at[1] for at in found(report, "no_trainable_token")] == [1, 2]
    assert [at[1] for at in found(check(tmp_path, *rows), "no_trainable_token")] == [1]  # without a base, from weights


def with_files(base: Path, folder: Path, **changed: Any) -> Path:
    """The base with other values in its tokenizer's settings."""
    shutil.copytree(base, folder)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | changed))
    return folder


def test_end_of_turn_not_trained(tmp_path: Path, tiny_base_folder: Path) -> None:
    unending = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    base = with_files(tiny_base_folder, tmp_path / "base", chat_template=unending, eos_token=None)
    assert found(check(tmp_path, chat("a", "b"), base=base), "end_of_turn_not_trained") == [
        ("rows.jsonl", 1, "$", "error")
    ]
    assert found(check(tmp_path, chat("a", "b"), base=tiny_base_folder), "end_of_turn_not_trained") == []


def test_an_earlier_answer_without_an_end_is_a_warning(tmp_path: Path, tiny_base_folder: Path) -> None:
    unended = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    base = with_files(tiny_base_folder, tmp_path / "base", chat_template=unended)
    row = {"messages": [*chat("a", "b")["messages"], *chat("c", "d")["messages"]]}
    assert found(check(tmp_path, row, base=base), "end_of_turn_not_trained") == [("rows.jsonl", 1, "$", "warning")]


def test_a_row_that_the_template_refuses(tmp_path: Path, tiny_base_folder: Path) -> None:
    base = with_files(tiny_base_folder, tmp_path / "base", chat_template="{{ raise_exception('never') }}")
    (finding,) = check(tmp_path, chat("a", "b"), base=base).findings
    assert (finding.rule, finding.severity) == ("template", "error")
    assert "never" in finding.message


def test_truncation_names_the_row_and_what_it_loses(tmp_path: Path, tiny_base_folder: Path) -> None:
    report = check(tmp_path, chat("a", "b"), chat("a?", LONG), base=tiny_base_folder, limit=64)
    assert found(report, "truncation") == [("rows.jsonl", 2, "$", "warning")]
    tokens = report.statistics["tokens"]
    (finding,) = [finding for finding in report.findings if finding.rule == "truncation"]
    assert f"has {tokens['total']['max']} tokens" in finding.message
    assert f"the last {tokens['lost']} are cut off ({tokens['lost']} of them trained)" in finding.message
    assert tokens["over_max_length"] == 1
    assert tokens["lost"] == tokens["total"]["max"] - 64


def test_token_lengths_are_those_of_the_renderer(tmp_path: Path, tiny_base_folder: Path) -> None:
    from tunery.plugins.data.render.renderer import Renderer

    rows = [chat("q" * number, "a" * number) for number in range(1, 101)]
    examples = [Renderer(tiny_base_folder).example(row["messages"]) for row in rows]
    lengths, trained = [len(e.ids) for e in examples], sorted(sum(e.trained) for e in examples)
    tokens = check(tmp_path, *rows, base=tiny_base_folder).statistics["tokens"]
    ordered = sorted(lengths)
    assert tokens["total"] == {
        "min": ordered[0],
        "p50": ordered[49],
        "p95": ordered[94],
        "max": ordered[-1],
        "sum": sum(lengths),
    }
    assert (tokens["trained"]["min"], tokens["trained"]["sum"]) == (trained[0], sum(trained))


def test_duplicates_and_conflicts(tmp_path: Path) -> None:
    report = check(tmp_path, chat("a", "b"), chat(" a", "b"), chat("a", "c"), chat("d", "b"), chat("a", "b", weight=1))
    assert found(report, "duplicate") == [("rows.jsonl", 2, "$", "error"), ("rows.jsonl", 5, "$", "error")]
    assert found(report, "conflicting_answers") == [("rows.jsonl", 3, "$", "error")]
    assert "rows.jsonl:1" in report.findings[0].message


def test_a_prompt_may_have_many_pairs_but_no_answer_that_is_better_and_worse(tmp_path: Path) -> None:
    def pair(chosen: str, rejected: str, prompt: str = "q") -> dict[str, Any]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    report = check(
        tmp_path,
        pair("a", "b"),
        pair("a", "c"),
        pair("b", "c"),
        pair("c", "d"),
        pair("b", "a", prompt="r"),
        pair("e", "a"),
    )
    conflicts = [finding for finding in report.findings if finding.rule == "conflicting_answers"]
    assert [(finding.line, finding.message) for finding in conflicts] == [
        (3, "prefers an answer that rows.jsonl:1 rejects to the same prompt"),
        (4, "prefers an answer that rows.jsonl:2 rejects to the same prompt"),
        (6, "rejects an answer that rows.jsonl:1 prefers to the same prompt"),
    ]


def test_near_duplicates_are_warned_of_and_exact_ones_are_not_told_twice(tmp_path: Path) -> None:
    near = LONG.replace("today", "now")
    other = "My invoice of last month lists a fee that nobody can explain to me and I would like to have it back"
    report = check(
        tmp_path, chat(LONG, "Off."), chat(near, "Off."), chat(LONG, "Off."), chat(other, "Off."), chat("so", "on")
    )
    assert found(report, "near_duplicate") == [("rows.jsonl", 2, "$", "warning")]
    assert found(report, "duplicate") == [("rows.jsonl", 3, "$", "error")]


def test_leakage(tmp_path: Path) -> None:
    val = (chat(LONG, "Off."), chat("fresh", "On."), chat(LONG.replace("today", "now"), "Off."), chat("a", "other"))
    report = check(tmp_path, chat(LONG, "Off."), chat("a", "b"), val=val)
    assert found(report, "leakage") == [("val.jsonl", line, "$", "error") for line in (1, 3, 4)]
    assert found(report, "duplicate") == found(report, "conflicting_answers") == []


SECRETS = [
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "ghp_" + "a1B2" * 9,
    "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "xoxb-" + "123456789012-abcdef",
    "AIza" + "a1B2c" * 7,
    "hf_" + "aB" * 17,
    "sk_live_" + "a1B2" * 5,
    "sk-proj-" + "a1B2" * 6,
    "postgres://admin:" + "hunter2@db.example.org",
    "password: " + "hunter2",
    "DB_PASSWORD=" + "Tr0ub4dor&3",
    '"passwd": "' + 's3cr3t-pass"',
    "api_key = '" + "a1B2c3D4e5F6g7H8i9J0k'",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTYifQ." + "c2lnbmF0dXJlLW9mLXRoaXM",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_errors_and_are_not_repeated(tmp_path: Path, secret: str) -> None:
    report = check(tmp_path, chat(f"Use {secret} here", "b"))
    assert found(report, "secret") == [("rows.jsonl", 1, "$.messages[0].content", "error")]
    assert not any(secret in str(finding) for finding in report.findings)


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("Mail jane.doe+x@mail.example.org please", "warning"),
        ("Call +49 30 1234567 now", "warning"),
        ("Call (555) 123-4567 now", "warning"),
        ("Pay with 4111 1111 1111 1111", "error"),
        ("Pay with 378282246310005.", "error"),
        ("To DE89 3704 0044 0532 0130 00", "error"),
        ("To GB82WEST12345698765432", "error"),
        ("My number is 219-09-9999.", "error"),
    ],
)
def test_personal_data(tmp_path: Path, text: str, severity: str) -> None:
    assert found(check(tmp_path, chat("a", text)), "pii") == [("rows.jsonl", 1, "$.messages[1].content", severity)]


@pytest.mark.parametrize(
    "text",
    [
        "Pay with 4111 1111 1111 1112",
        "To DE89 3704 0044 0532 0130 01",
        "On 2024-01-15 at 12:30:45, 1,234,567.89 of 100-200",
        "version 10.2.3.4, order 1234567890, @here, a@b",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "https://example.org/a:b and sk-short and task-force-of-many-words",
        "0000 0000 0000 0000",
        "Your password is wrong: a password is 8-20characters, min_password=12345, password: ********, password=os.environ['P4SS']",
        "See list [1], an array a[NAME_1], {{}} and <b>your</b>, x < your y > z, [INFO] started, [x]",
        "parts 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000, 1123-45-6789 and 123-45-67890",
    ],
)
def test_what_only_looks_like_it_is_left_alone(tmp_path: Path, text: str) -> None:
    assert check(tmp_path, chat("a", text)).findings == []


def test_checksums() -> None:
    assert is_card("5555555555554444")
    assert not is_card("5555555555554445")
    assert not is_card("٤١١١١١١١١١١١١١١١")
    assert is_iban("FR1420041010050500013M02606")
    assert not is_iban("FR1420041010050500013M02607")


def test_diversity_tells_refusals_sameness_and_openings(tmp_path: Path) -> None:
    def whole(report: DataReport) -> list[Finding]:
        return [finding for finding in report.findings if finding.rule == "diversity"]

    words = [f"{first}{last}" for first in ("amb", "del", "fjo", "gro") for last in ("er", "ta", "rd", "ve")] + ["reef"]
    varied = [
        chat(str(n), " ".join(words[(n * k + k * k) % 17] for k in range(1, 9)) + f" {n * 7919 % 1000}")
        for n in range(60)
    ]
    report = check(tmp_path, *varied)
    assert whole(report) == []
    figures = report.statistics["diversity"]
    assert figures["refusals"] == 0
    assert 0 < figures["distinct_1"] < figures["distinct_2"] <= figures["distinct_3"] <= 1
    same = check(tmp_path, *(chat(str(n), "I'm sorry, I cannot help with that today.") for n in range(60)))
    assert [(f.line, f.severity) for f in whole(same)] == [(0, "info"), *[(0, "warning")] * 3]
    assert same.statistics["diversity"]["refusals"] == 1
    assert same.statistics["diversity"]["top_openings"] == [{"text": "I'm sorry, I cannot", "share": 1.0}]
    assert same.statistics["diversity"]["compression_ratio"] > 10


def test_a_password_in_prose_is_a_warning(tmp_path: Path) -> None:
    report = check(tmp_path, chat("a", "Your temporary password is " + "Welcome2024."))
    assert found(report, "secret") == [("rows.jsonl", 1, "$.messages[1].content", "warning")]
    assert "Welcome2024" not in str(report.findings)


def turns(*said: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in said], **more}


def test_conversations_without_a_user_and_late_instructions(tmp_path: Path) -> None:
    report = check(
        tmp_path,
        turns(("system", "s"), ("user", "q"), ("assistant", "a")),
        turns(("system", "s"), ("assistant", "b")),
        turns(("user", "r"), ("system", "s"), ("assistant", "c")),
        turns(("system", "s"), ("developer", "t"), ("user", "u"), ("assistant", "d")),
    )
    assert found(report, "turn_order") == [
        ("rows.jsonl", 2, "$", "warning"),
        ("rows.jsonl", 3, "$.messages[1]", "warning"),
        ("rows.jsonl", 4, "$.messages[1]", "warning"),
    ]


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": "{}"}, **more}]}


TOOLS = [{"type": "function", "function": {"name": "now"}}]
ASK, DONE = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([ASK, call("now", id="c"), {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, []),
        ([ASK, call("now"), {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, []),
        ([ASK, call("now", id="c"), {"role": "tool", "content": "1"}, DONE], TOOLS, []),
        ([ASK, call("now")], TOOLS, []),
        ([ASK, call("then")], TOOLS, [("$.messages[1]", "error")]),
        ([ASK, call("now")], None, [("$.messages[1]", "warning")]),
        ([ASK, {"role": "tool", "tool_call_id": "c", "content": "1"}, DONE], TOOLS, [("$.messages[1]", "error")]),
        ([ASK, call("now", id="c"), {"role": "tool", "tool_call_id": "d", "content": "1"}, DONE], TOOLS,
         [("$.messages[2]", "error"), ("$.messages[3]", "warning")]),
        ([ASK, call("now", id="c"), *[{"role": "tool", "tool_call_id": "c", "content": "1"}] * 2, DONE], TOOLS,
         [("$.messages[3]", "error")]),
        ([ASK, call("now", id="c"), ASK, DONE], TOOLS, [("$.messages[2]", "warning")]),
    ],
)  # fmt: skip
def test_calls_and_results_belong_together(
    tmp_path: Path, messages: list[Any], tools: Any, expected: list[tuple[str, str]]
) -> None:
    report = check(tmp_path, {"messages": messages, "tools": tools})
    assert [(path, severity) for _, _, path, severity in found(report, "tool_call")] == expected


def test_conflicts_that_differ_in_case_or_spaces_are_warnings(tmp_path: Path) -> None:
    rows = (
        chat("Reset my password?", "Yes."),
        chat("reset my  password ?", "No."),
        chat("RESET my password?", "yes."),
        chat("Reset my password?", "Never."),
    )
    assert found(check(tmp_path, *rows), "conflicting_answers") == [
        ("rows.jsonl", 2, "$", "warning"),
        ("rows.jsonl", 4, "$", "error"),
    ]


def test_an_answer_that_many_rows_give_is_told(tmp_path: Path) -> None:
    def same(text: str) -> list[tuple[int, str]]:
        rows = [chat(f"{n}?", text if n % 4 == 0 else f"{n} is the answer to {n * n} of {n**3}.") for n in range(96)]
        return [
            (f.line, f.severity)
            for f in check(tmp_path, *rows).findings
            if repr(text) in f.message and "are" in f.message
        ]

    assert same("Please ask the service desk.") == [(0, "warning")]
    assert same("billing") == [(0, "info")]
    assert same("7 is the answer to nothing much.") == [(0, "warning")]


@pytest.mark.parametrize(
    "text", ["Dear {{name}}, hello", "I am [NAME].", "at [COMPANY NAME]", "at <your company>", "[insert date]"]
)
def test_templates_that_were_not_filled_in(tmp_path: Path, text: str) -> None:
    assert found(check(tmp_path, chat("a", text)), "placeholder") == [
        ("rows.jsonl", 1, "$.messages[1].content", "warning")
    ]


SENTENCE = "You can change the address in the settings. "


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        (SENTENCE + "Then confirm the mail that we", True),
        (SENTENCE + "Then open your", True),
        ("First you open the settings of your account and", True),
        ("```python\nprint(1)\n", True),
        (SENTENCE, False),
        (SENTENCE + "Ask us at https://example.org/help", False),
        (SENTENCE + "\n\n- open the settings\n- change the address there and here", False),
        (SENTENCE + "\n\nBest regards,\nThe Team", False),
        ("```python\nprint(1)\n```", False),
        ("the printer on the second floor has no paper today", False),
        ("你可以在设置中更改地址", False),
    ],
)
def test_answers_that_are_cut_off(tmp_path: Path, answer: str, cut: bool) -> None:
    assert found(check(tmp_path, chat("a", answer)), "cut_answer") == [("rows.jsonl", 1, "$", "warning")] * cut


def test_answers_that_begin_with_the_prompt(tmp_path: Path) -> None:
    asked = "Where is the printer?"
    pair = {"prompt": asked, "completion": asked + " Upstairs."}
    assert found(check(tmp_path, pair), "repeated_prompt") == [("rows.jsonl", 1, "$", "error")]
    assert found(check(tmp_path, {"prompt": "Hello", "completion": "Hello there"}), "repeated_prompt") == []
    both = {"prompt": asked, "chosen": asked + " Up.", "rejected": asked + " Down."}
    assert found(check(tmp_path, both), "repeated_prompt") == [("rows.jsonl", 1, "$", "error")]
    for one in (both | {"chosen": "Up."}, chat(asked, asked + " Up.")):
        assert found(check(tmp_path, one), "repeated_prompt") == [("rows.jsonl", 1, "$", "warning")]


def test_columns_that_are_not_read_are_told_once_a_file(tmp_path: Path) -> None:
    rows = [
        chat(str(n), f"{n}.") | {"metadata": {"card": "4111 1111 1111 1111"}, "id": n, "score": n, "empty": None}
        for n in range(3)
    ]
    report = check(tmp_path, *rows, chat("x", "y.") | {"rating": 3})
    assert found(report, "extra_column") == [
        ("rows.jsonl", 1, "$.score", "warning"),
        ("rows.jsonl", 4, "$.rating", "warning"),
    ]
    assert report.errors == []
