"""Make questions to a fictional garden shop with answers in its tone: greet by name, one warm
sentence, one fact, one next step.

python make_data.py FILE    writes 240 rows
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = (
    "Amara",
    "Bo",
    "Chiara",
    "Dmitri",
    "Elif",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kaito",
    "Lena",
    "Mina",
    "Noor",
    "Otto",
    "Priya",
)
ITEMS = (
    "watering can",
    "rose bush",
    "pruning shears",
    "bag of compost",
    "bird feeder",
    "garden hose",
    "clay pot",
    "lawn rake",
    "seed tray",
    "trellis",
)
OPENINGS = (
    "Hello, {name} here.",
    "Hi!",
    "Good morning, this is {name}.",
    "Hey, {name} again.",
    "Dear team, I am {name}.",
)


@dataclass(frozen=True)
class Topic:
    """What customers ask about, and the parts of an answer to it."""

    questions: tuple[str, ...]
    warm: tuple[str, ...]
    fact: str
    steps: tuple[str, ...]


TOPICS = (
    Topic(
        (
            "My {item} was due on {day} and still is not here.",
            "Where is my {item}? It should have come on {day}.",
            "The tracking page has not moved since {day}, and I need the {item}.",
        ),
        (
            "Waiting for a parcel is no fun.",
            "We are sorry that yours is late.",
            "That is longer than anyone should wait.",
        ),
        "Your {item} left our greenhouse and is with the carrier.",
        (
            "If it is not there by tomorrow evening, reply here and we will send another one.",
            "We have asked them where it is and will write to you today.",
        ),
    ),
    Topic(
        (
            "The {item} arrived broken on {day}.",
            "I opened the box on {day} and the {item} is damaged.",
            "There is a crack in the {item} you delivered on {day}.",
        ),
        (
            "Oh no, things should reach you whole.",
            "That must have been a sad box to open.",
            "Sorry about the bumpy ride.",
        ),
        "We replace anything that breaks on its way, and you keep the old {item}.",
        (
            "A new one goes out today; there is nothing to send back.",
            "Choose a refund instead with one click in your account.",
        ),
    ),
    Topic(
        (
            "Can I return the {item} that I bought on {day}?",
            "The {item} from {day} is not for me. How do I send it back?",
            "I changed my mind about the {item}, ordered on {day}.",
        ),
        ("Of course you can.", "Not everything finds its place in the garden.", "No hard feelings at all."),
        "You have thirty days to send the {item} back, and returns cost nothing.",
        (
            "Print the label in your account and go to any post office.",
            "Or bring it to one of our shops, even without the box.",
        ),
    ),
    Topic(
        (
            "I was charged twice for the {item} on {day}.",
            "My card shows two payments for one {item}, both from {day}.",
            "Why is there a second payment from {day} for my {item}?",
        ),
        ("Thank you for spotting that.", "Sorry for the fright.", "You are right to ask."),
        "The second payment for the {item} is only reserved and was never taken.",
        (
            "It disappears within three days; write to us if it does not.",
            "Your bank can release it at once if you call them.",
        ),
    ),
    Topic(
        (
            "How do I look after the {item} in winter? I got it on {day}.",
            "Does the {item} from {day} need special care?",
            "What keeps a {item} in good shape? Mine came on {day}.",
        ),
        (
            "What a lovely question.",
            "It is a joy to hear from a careful gardener.",
            "Good that you ask before the frost does.",
        ),
        "Keep your {item} dry and out of the cold, and it will last for years.",
        ("There is a care card in the box.", "Our Saturday workshop shows how, and you are invited."),
    ),
    Topic(
        (
            "Will the {item} be back before {day}?",
            "You had no {item} left on {day}. When can I buy one?",
            "Could you keep a {item} for me until {day}?",
        ),
        ("We love that you want one too.", "They went faster than we thought.", "You are not the only fan of it."),
        "The next delivery of the {item} comes on Friday.",
        ("Press the bell beside it and we will write to you first.", "Tell us your shop and we will put one aside."),
    ),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` conversations, no two with the same question."""
    chance, seen, made = random.Random(seed), set[str](), list[dict[str, Any]]()
    while len(made) < count:
        name, item, day, opening = (chance.choice(words) for words in (NAMES, ITEMS, DAYS, OPENINGS))
        topic = chance.choice(TOPICS)
        question = f"{opening} {chance.choice(topic.questions)}".format(name=name, item=item, day=day)
        greeting = f"Hi {name}!" if name in question else "Hi there!"
        answer = f"{greeting} {chance.choice(topic.warm)} {topic.fact} {chance.choice(topic.steps)}\nYour friends at Larkspur"
        if question not in seen:
            seen.add(question)
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer.format(item=item)},
            ]
            made.append({"messages": messages})
    return made


def main() -> None:
    """Write the file."""
    path = Path(sys.argv[1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(240)))
    print(f"{path}: 240 rows")


if __name__ == "__main__":
    main()
