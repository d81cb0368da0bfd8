"""Keys are created, found by their token, rotated and revoked; their secrets are kept nowhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from tunery.registry.errors import Conflict, InvalidInput, NotFound
from tunery.registry.home import Home
from tunery.registry.keys.api_key import SCOPES, ApiKey, matches, split_token
from tunery.registry.keys.keys import Keys
from tunery.registry.registry import Registry


@dataclass
class Clocked:
    registry: Registry
    now: list[float]

    @property
    def keys(self) -> Keys:
        return self.registry.keys

    def create(self, tenant: str = "acme", *scopes: str, **options: object) -> tuple[ApiKey, str]:
        return self.keys.create(tenant=tenant, scopes=scopes or ("infer",), actor="ops", **options)  # type: ignore[arg-type]

    def key(self, key_id: str) -> ApiKey:
        return next(key for key in self.keys.list() if key.id == key_id)


@pytest.fixture
def clocked(home: Home) -> Iterator[Clocked]:
    now = [1000.0]
    with Registry.open(home, clock=lambda: now[0]) as registry:
        yield Clocked(registry, now)


def test_a_token_is_the_keys_and_no_other(clocked: Clocked) -> None:
    (key, token), (other, other_token) = clocked.create(), clocked.create()
    key_id, secret = split_token(token) or ("", "")
    assert key_id == key.id
    assert matches(clocked.key(key.id), secret)
    assert not matches(other, secret)
    assert not matches(key, (split_token(other_token) or ("", ""))[1])
    assert not matches(None, secret)
    assert not matches(None, "")


def test_the_secret_is_kept_nowhere(clocked: Clocked, home: Home) -> None:
    _, token = clocked.create(label="for the shop")
    with closing(sqlite3.connect(home.database)) as database:
        dump = "\n".join(database.iterdump())
    assert "for the shop" in dump
    assert token.partition(".")[2] not in dump


@pytest.mark.parametrize(
    "token",
    ["", "tn-", "tn-abcdefghijkl.", "sk-" + "a" * 50, "tn-ABCDEFGHIJKL." + "a" * 43, "tn-abcdefghijkl." + "é" * 43],
)
def test_what_is_no_token_is_none(token: str) -> None:
    assert split_token(token) is None


def test_a_key_ends_by_itself(clocked: Clocked) -> None:
    key, _ = clocked.create(seconds=60.0)
    assert (key.expires_at, key.state(1059.0), key.state(1060.0)) == (1060.0, "active", "expired")


def test_a_revoked_key_stays_so(clocked: Clocked) -> None:
    key, _ = clocked.create()
    clocked.now[0] = 2000.0
    assert clocked.keys.revoke(key.id).revoked_at == 2000.0
    clocked.now[0] = 3000.0
    assert clocked.keys.revoke(key.id).revoked_at == 2000.0
    # The clock of another machine, or one that was set back, brings nothing back.
    assert clocked.key(key.id).state(0.0) == "revoked"


def test_a_rotated_key_is_good_for_a_while_beside_the_new_one(clocked: Clocked) -> None:
    old, token = clocked.create("acme", "infer", "train", adapters=("acme/*",), label="shop", seconds=10_000.0)
    new, new_token = clocked.keys.rotate(old.id, actor="ops2", overlap=60.0)
    assert new_token != token
    assert (new.scopes, new.adapters, new.label, new.expires_at) == (old.scopes, old.adapters, "shop", 11_000.0)
    assert (new.created_by, new.replaced_by) == ("ops2", None)
    replaced = clocked.key(old.id)
    assert (replaced.expires_at, replaced.replaced_by) == (1060.0, new.id)
    with pytest.raises(Conflict, match=f"was replaced by {new.id}"):
        clocked.keys.rotate(old.id, actor="ops2", overlap=60.0)


def test_a_rotation_never_prolongs_a_key(clocked: Clocked) -> None:
    old, _ = clocked.create(seconds=30.0)
    clocked.keys.rotate(old.id, actor="ops", overlap=60.0)
    assert clocked.key(old.id).expires_at == 1030.0


@pytest.mark.parametrize("end", ["expired", "revoked"])
def test_a_key_that_has_ended_is_not_rotated(end: str, clocked: Clocked) -> None:
    key, _ = clocked.create(seconds=10.0)
    if end == "revoked":
        clocked.keys.revoke(key.id)
    else:
        clocked.now[0] = 2000.0
    with pytest.raises(Conflict, match=f"is {end}; create a new one"):
        clocked.keys.rotate(key.id, actor="ops", overlap=60.0)
    assert len(clocked.keys.list()) == 1


def test_unknown_keys_are_not_found(clocked: Clocked) -> None:
    for act in (clocked.keys.revoke, lambda key: clocked.keys.rotate(key, actor="ops", overlap=1.0)):
        with pytest.raises(NotFound, match="there is no key 'none'; see tunery keys list"):
            act("none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tenant": "Acme"}, "'Acme' is not a tenant"),
        ({"tenant": "a/b"}, "is not a tenant"),
        ({"tenant": "a..b"}, "is not a tenant"),
        ({"scopes": ()}, "a key needs a scope: infer, train, publish, metrics, admin"),
        ({"scopes": ("inferr",)}, "inferr"),
        ({"adapters": ("acme",)}, "'acme' is no pattern of adapters"),
        ({"adapters": ("acme/[a]",)}, "is no pattern of adapters"),
        ({"label": "x" * 129}, "a label has at most 128"),
        ({"label": "a\nb"}, "printable"),
    ],
)
def test_what_a_key_cannot_be(options: dict[str, object], message: str, clocked: Clocked) -> None:
    with pytest.raises(InvalidInput, match=message.replace("[", r"\[")):
        clocked.keys.create(**({"tenant": "acme", "scopes": ("infer",), "actor": "ops"} | options))  # type: ignore[arg-type]
    assert clocked.keys.list() == []


def test_keys_are_listed_in_the_order_of_their_creation(clocked: Clocked) -> None:
    made = []
    for tenant in ("globex", "acme", "acme"):
        clocked.now[0] += 1
        made.append(clocked.create(tenant, *SCOPES)[0])
    assert clocked.keys.list() == made
    assert clocked.keys.list(tenant="acme") == made[1:]
    assert made[0].scopes == SCOPES
