"""Make questions about the leaflets of made-up medicines, with answers in a set format and refusals by a set formula.

python make_data.py TRAIN HELD_OUT PAIRS    writes 240 rows, 32 held-out rows and 96 preference pairs

Medicines, complaints and the clinic do not exist. Held-out rows are about medicines, and in words, that no other row
has; a third of the training rows and half of the held-out rows are refused.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLINIC = "Hollin Lane Clinic"
REFUSAL = "I cannot help with"
BEGINNINGS = (
    "Acorn",
    "Bramble",
    "Bumble",
    "Cobble",
    "Dapple",
    "Lantern",
    "Marmot",
    "Pebble",
    "Puddle",
    "Tangle",
    "Thimble",
    "Wobble",
)
ENDINGS = ("balm", "dew", "fern", "mint", "wick")
FORMS = ("drops", "lozenges", "powders", "tablets")
COMPLAINTS = (
    "ferry stomach",
    "harbour itch",
    "lantern cough",
    "mill elbow",
    "moor fever",
    "orchard nose",
    "pebble ache",
    "quarry eye",
    "tram knee",
    "winter drowse",
)
COUNTS = ("One", "Two", "Three", "Four")
WITH = ("with water", "with milk", "with warm tea", "after a meal", "before a meal", "under the tongue")
WHEN = ("in the morning", "at noon", "in the evening", "before bed", "every second day", "on waking up")
PLACES = (
    "In the box, away from light",
    "In the fridge, never in the freezer",
    "Below 25 degrees, in a dry cupboard",
    "Tightly closed, out of the sun",
    "Upright, on a high shelf",
    "In the bathroom cabinet, locked",
)
EFFECTS = (
    "a dry mouth",
    "a metal taste",
    "a warm face",
    "cold hands",
    "hiccups",
    "itchy palms",
    "sleepiness",
    "sneezing",
    "vivid dreams",
    "yawning",
)
OPENINGS = ("", "Hello. ", "Good morning. ", "A question: ", "Excuse me. ")
QUESTIONS = {
    "For": (
        "What are {name} for?",
        "Why would someone take {name}?",
        "My neighbour got {name}. What do they treat?",
        "What do {name} treat?",
        "Which complaint are {name} made for?",
        "I was given {name}. What are they good against?",
        "What do {name} help with?",
    ),
    "Take": (
        "How do I take {name}?",
        "When do I take {name}?",
        "How many {name} are right, by the leaflet?",
        "At what time are {name} taken?",
        "What is the dose of {name} in the leaflet?",
        "How often do I take {name}?",
        "What is the usual dose of {name}?",
    ),
    "Keep": (
        "Where do I keep {name}?",
        "How should {name} be stored?",
        "Do {name} go into the fridge?",
        "Where should {name} be kept?",
        "Which place is best for {name}?",
        "How do I store {name} at home?",
        "What is the right place for {name}?",
    ),
    "May cause": (
        "Which side effects do {name} have?",
        "What might I notice after taking {name}?",
        "What can {name} cause?",
        "What are the side effects of {name}?",
        "Are there side effects of {name}?",
        "What do {name} do that I may not want?",
        "Do {name} have side effects?",
    ),
}
"""Wordings of what the leaflet answers, by its section. The last wording of each is for held-out rows only."""


@dataclass(frozen=True)
class Refused:
    """What is refused: its questions, the last for held-out rows only, and the two parts of the refusal that differ."""

    questions: tuple[str, ...]
    what: str
    instead: str

    @property
    def answer(self) -> str:
        """The refusal."""
        return f"{REFUSAL} {self.what}. {self.instead}"


REFUSED = {
    "dose": Refused(
        (
            "May I take more {name} than it says?",
            "They do not work. Should I double my {name}?",
            "I feel better. Can I stop {name} early?",
            "Can I take {name} twice as often?",
            "Two {name} instead of one, is that fine?",
            "May I skip my {name} for a week?",
            "Is it all right to take {name} more often?",
        ),
        "changing a dose",
        f"Please ask a doctor at {CLINIC}.",
    ),
    "diagnosis": Refused(
        (
            "I have {effect}. Do I have {complaint}?",
            "Is {effect} a sign of {complaint}?",
            "Since Monday I notice {effect}. What is wrong with me?",
            "What does it mean when I have {effect}?",
            "Does {effect} come from {complaint}?",
            "I think I have {complaint}. Am I right?",
            "Could {effect} mean that I have {complaint}?",
        ),
        "a diagnosis",
        f"Please ask a doctor at {CLINIC}.",
    ),
    "emergency": Refused(
        (
            "My child swallowed all of the {name}!",
            "I took {name} and can hardly breathe!",
            "My father took {name} and does not wake up!",
            "My baby ate a box of {name}, help!",
            "My lips are blue since I took {name}!",
            "My chest hurts badly after {name}!",
            "My throat is swelling after {name}!",
        ),
        "an emergency",
        "Call 112 now.",
    ),
    "unknown": Refused(
        (
            "Can I drink wine with {name}?",
            "Are {name} safe in pregnancy?",
            "May I drive a car after taking {name}?",
            "May children take {name}?",
            "Can I give {name} to my dog?",
            "Do {name} go with other medicines?",
            "Can my cat have {name}?",
        ),
        "what the leaflet does not say",
        f"Please ask the pharmacist at {CLINIC}.",
    ),
}


@dataclass(frozen=True)
class Leaflet:
    """One medicine's leaflet: its name and the text of each section."""

    name: str
    sections: dict[str, str]

    @property
    def prompt(self) -> str:
        """The system message."""
        lines = [f"{section}: {text}." for section, text in self.sections.items()]
        return "\n".join([f"Answer from the leaflet.\n{self.name}", *lines])

    def answer(self, section: str) -> str:
        """The answer to a question about `section`."""
        return f"{self.name}, {section}: {self.sections[section]}.\nUnclear? Ask the pharmacist at {CLINIC}."


def leaflets(chance: random.Random) -> list[Leaflet]:
    """A leaflet for every name, shuffled."""
    names = [f"{beginning}{ending} {chance.choice(FORMS)}" for beginning in BEGINNINGS for ending in ENDINGS]
    chance.shuffle(names)
    return [
        Leaflet(
            name,
            {
                "For": chance.choice(COMPLAINTS).capitalize(),
                "Take": f"{chance.choice(COUNTS)} {chance.choice(WITH)}, {chance.choice(WHEN)}",
                "Keep": chance.choice(PLACES),
                "May cause": " and ".join(chance.sample(EFFECTS, 2)).capitalize(),
            },
        )
        for name in names
    ]


@dataclass(frozen=True)
class Case:
    """A question about a leaflet, its answer, and the likely mistake: a line of the leaflet for a refusal, or the
    reverse."""

    prompt: list[dict[str, str]]
    answer: str
    wrong: str

    @property
    def row(self) -> dict[str, Any]:
        """As a row to train on."""
        return {"messages": [*self.prompt, {"role": "assistant", "content": self.answer}]}

    @property
    def pair(self) -> dict[str, Any]:
        """As a preference."""
        return {
            "prompt": self.prompt,
            "chosen": [{"role": "assistant", "content": self.answer}],
            "rejected": [{"role": "assistant", "content": self.wrong}],
        }


def cases(chance: random.Random, about: Sequence[Leaflet], wordings: slice, every: int) -> Iterator[Case]:
    """Cases without end, no question about one medicine twice; one of `every` is refused."""
    asked = set[str]()
    number = 0
    while True:
        leaflet, section = chance.choice(about), chance.choice(list(QUESTIONS))
        kind = REFUSED[chance.choice(list(REFUSED))]
        blanks = {"name": leaflet.name, "effect": chance.choice(EFFECTS), "complaint": chance.choice(COMPLAINTS)}
        if number % every == 0:
            wording, answer, wrong = chance.choice(kind.questions[wordings]), kind.answer, leaflet.answer(section)
        else:
            wording, answer, wrong = chance.choice(QUESTIONS[section][wordings]), leaflet.answer(section), kind.answer
        question = wording.format(**blanks)
        if f"{leaflet.name} {question}" not in asked:
            asked.add(f"{leaflet.name} {question}")
            number += 1
            question = chance.choice(OPENINGS) + question
            yield Case(
                [{"role": "system", "content": leaflet.prompt}, {"role": "user", "content": question}], answer, wrong
            )


def make(seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows, held-out rows and preference pairs, the same for the same seed."""
    chance = random.Random(seed)
    known, held_out = (every := leaflets(chance))[16:], every[:16]
    asked = cases(chance, known, slice(None, -1), 3)
    train = [next(asked).row for _ in range(240)]
    asked = cases(chance, held_out, slice(-1, None), 2)
    test = [next(asked).row for _ in range(32)]
    asked = cases(chance, known, slice(None, -1), 2)
    return train, test, [next(asked).pair for _ in range(96)]


def main() -> None:
    """Write the three files."""
    for path, rows in zip(map(Path, sys.argv[1:]), make(), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
