"""Signatures estimate the share of shingles in common; the index finds what is near and stays small."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np

from tunery.plugins.data.checks.minhash import NEAR, SimilarIndex, signature

WORDS = [f"word{n}" for n in range(5000)]


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def test_the_estimate_is_near_the_true_share() -> None:
    chance, errors = random.Random(0), []
    for _ in range(200):
        one = chance.choices(WORDS, k=80)
        other = [word if chance.random() > 0.1 else chance.choice(WORDS) for word in one]
        a, b = shingles(one), shingles(other)
        ours = [np.frombuffer(signature(" ".join(words)) or b"", dtype=np.uint32) for words in (one, other)]
        errors.append(float(np.mean(ours[0] == ours[1])) - len(a & b) / len(a | b))
    assert abs(float(np.mean(errors))) < 0.02
    assert max(map(abs, errors)) < 0.25


def test_near_texts_are_found_and_far_ones_are_not() -> None:
    chance, hits = random.Random(1), 0
    index: SimilarIndex[int] = SimilarIndex()
    texts = [chance.choices(WORDS, k=60) for _ in range(300)]
    for number, words in enumerate(texts):
        sign = signature(" ".join(words))
        assert sign is not None
        assert index.find(sign) is None
        index.add(sign, number)
    for number, words in enumerate(texts):
        match = index.find(signature(" ".join([*words[:30], "changed", *words[31:]])) or b"")
        assert match is None or (match[0] == number and match[1] >= NEAR)
        hits += match is not None
    assert hits >= 295


def test_rows_of_one_instruction_are_distinguished_without_comparing_all() -> None:
    chance, instruction = random.Random(2), WORDS[:30]
    index: SimilarIndex[int] = SimilarIndex()
    texts = [[*instruction, *chance.choices(WORDS, k=30)] for _ in range(2000)]
    for number, words in enumerate(texts):
        sign = signature(" ".join(words))
        assert sign is not None
        assert index.find(sign) is None
        index.add(sign, number)
    assert max(len(bucket) for bucket in index._buckets.values()) <= 32
    changed = [index.find(signature(" ".join([*words[:-1], "changed"])) or b"") for words in texts[1500:]]
    assert sum(match is not None and match[0] == number for number, match in enumerate(changed, 1500)) >= 490


def test_few_words_have_no_signature_and_case_and_marks_do_not_count() -> None:
    assert signature("one two three four five six seven") is None
    assert signature("One, two three four five: six seven EIGHT!") == signature(
        "one two three four five six seven eight"
    )


def test_another_process_makes_the_same_signature() -> None:
    text = "the same words in every process whatever the seed of its hashes"
    code = f"from tunery.plugins.data.checks.minhash import signature; print(signature({text!r}).hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sign = signature(text)
    assert sign is not None
    assert done.stdout.strip() == sign.hex()
