"""What gateways of several machines count together, in Redis. It says the same as `registry.limits.counters` does.

What a gateway asks for at once happens at once. Keys end by themselves when nothing in them counts any
more. Time is Redis' own, carried on by the monotonic clock from when the connection was made, so that no wall clock
that jumps has an effect while a gateway runs.
"""

from __future__ import annotations

import json
import time
from typing import Any

import redis

from tunery.registry.limits.counters import HOLD_SECONDS, Claim, Exchange, Exchanged, Granted, Hold
from tunery.registry.limits.window import SLOT_SECONDS, WINDOW_SLOTS, slot_of

__all__ = ["RedisCounters"]

PREFIX = "tunery:limits:"
TIMEOUT_SECONDS = 1.0
KEEP_SECONDS = SLOT_SECONDS * (WINDOW_SLOTS + 1)

_CLAIM = """
local slot, need, most, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local fields, used, slots = redis.call('HGETALL', KEYS[1]), 0, {}
for i = 1, #fields, 2 do
  local at = tonumber(fields[i])
  if at <= slot - tonumber(ARGV[5]) or at > slot + 1 then
    redis.call('HDEL', KEYS[1], fields[i])
  else
    used = used + tonumber(fields[i + 1])
    slots[fields[i]] = tonumber(fields[i + 1])
  end
end
local amount = math.min(most, limit - used)
if amount < need then
  amount = 0
else
  slots[ARGV[1]] = redis.call('HINCRBY', KEYS[1], ARGV[1], amount)
  redis.call('EXPIRE', KEYS[1], ARGV[6])
end
slots['amount'] = amount
return cjson.encode(slots)
"""
_RETURN = """
local used = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if used > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], math.max(0, used - tonumber(ARGV[2])))
end
return 0
"""
_HOLD = """
local now, need, most, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local fields, others, mine = redis.call('HGETALL', KEYS[1]), 0, 0
for i = 1, #fields, 2 do
  local held, til = string.match(fields[i + 1], '(%d+) ([%d.]+)')
  if fields[i] == ARGV[1] then
    mine = tonumber(held)
  elseif tonumber(til) < now then
    redis.call('HDEL', KEYS[1], fields[i])
  else
    others = others + tonumber(held)
  end
end
local amount = math.min(most, limit - others)
if amount < need then amount = mine end
if amount > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %.3f', amount, now + tonumber(ARGV[6])))
  redis.call('EXPIRE', KEYS[1], ARGV[7])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return math.max(amount, 0)
"""


class RedisCounters:
    """The counters of one Redis. Its methods may block, for TIMEOUT_SECONDS at most."""

    def __init__(self, url: str, *, client: Any = None) -> None:
        self._redis: Any = client or redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._claim, self._return, self._hold = map(self._redis.register_script, (_CLAIM, _RETURN, _HOLD))
        self._ahead: float | None = None

    def now(self) -> float:
        """The time that counts: Redis', this machine's own before it has answered."""
        return time.monotonic() + (self._ahead or 0.0)

    def exchange(self, asked: Exchange) -> Exchanged:
        """Give back, then claim and hold; raise redis.RedisError."""
        if self._ahead is None:
            seconds, micro = self._redis.time()
            self._ahead = seconds + micro / 1e6 - time.monotonic()
            # What was asked for by another clock is asked for again.
            asked = Exchange(owner=asked.owner, now=self.now(), claims=asked.claims, holds=asked.holds)
        # All at once: of two gateways that ask for the last of two limits, one gets both.
        with self._redis.pipeline(transaction=True) as together:
            for back in asked.returns:
                self._return([_key(back.subject, back.resource)], (back.slot, back.amount), client=together)
            for claim in asked.claims:
                self._ask_claim(claim, slot_of(asked.now), together)
            for hold in asked.holds:
                self._ask_hold(hold, asked, together)
            answers = together.execute()[len(asked.returns) :]
        claims, holds = answers[: len(asked.claims)], answers[len(asked.claims) :]
        return Exchanged(claims=[_granted(answer) for answer in claims], holds=[int(answer) for answer in holds])

    def _ask_claim(self, claim: Claim, slot: int, together: Any) -> None:
        arguments = (slot, claim.need, claim.most, claim.limit, WINDOW_SLOTS, KEEP_SECONDS)
        self._claim([_key(claim.subject, claim.resource)], arguments, client=together)

    def _ask_hold(self, hold: Hold, asked: Exchange, together: Any) -> None:
        arguments = (asked.owner, asked.now, hold.need, hold.most, hold.limit, HOLD_SECONDS, int(2 * HOLD_SECONDS))
        self._hold([_key(hold.subject, "concurrent")], arguments, client=together)


def _granted(answer: bytes) -> Granted:
    slots: dict[str, int] = json.loads(answer)
    amount = slots.pop("amount")
    return Granted(amount, {int(at): used for at, used in slots.items()})


def _key(subject: str, resource: str) -> str:
    return f"{PREFIX}{subject}:{resource}"
