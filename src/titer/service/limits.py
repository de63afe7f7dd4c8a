"""How often a key may ask, and an address may guess keys: token buckets in the memory of one server.

Several servers over one database count each for itself, and a server that starts anew begins with full buckets.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from titer.service import keys
from titer.service.context import Service
from titer.service.policy import Policy
from titer.service.refusals import Refused
from titer.service.tables import Key, Organisation

GUESSES = 30
"""How many wrong keys an address may show a minute."""
REMEMBERED = 10_000
"""Of how many keys and addresses anything is remembered; those that were not seen for the longest time go first."""
FRESH = 2.0
"""For how many seconds a policy is taken for the one that holds."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class Taken:
    """What a bucket had when something was taken out of it, or was to be.

    Attributes:
        allowed: Whether there was enough.
        limit: How much it holds.
        remaining: How much is left.
        wait: Seconds until there is enough for one more.
        full: Seconds until it is full again.
    """

    allowed: bool
    limit: int
    remaining: int
    wait: float
    full: float

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's headers about it."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.full:.3f}s",
        }


class Remembered(OrderedDict[Any, Any]):
    """A dictionary of at most so many things."""

    def __init__(self, most: int = REMEMBERED) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, name: Any, value: Any) -> None:
        super().__setitem__(name, value)
        self.move_to_end(name)
        if len(self) > self.most:
            self.popitem(last=False)


class Buckets:
    """Buckets that fill up evenly, by the name of whom they are for.

    Args:
        clock: Counts seconds; not the time of day, which may be put back.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._buckets: Remembered = Remembered()

    def take(self, name: str, a_minute: int, count: int = 1) -> Taken:
        """Take something out of a bucket that holds what may be taken in a minute; with `count` 0 look at it only."""
        with self._lock:
            at = self._clock()
            held, since = self._buckets.get(name, (float(a_minute), at))
            held = min(float(a_minute), held + (at - since) * a_minute / 60)
            allowed = held >= max(count, 1)
            if allowed:
                held -= count
            self._buckets[name] = (held, at)
        rate = a_minute / 60
        return Taken(allowed, a_minute, math.floor(held), max(0.0, 1 - held) / rate, (a_minute - held) / rate)


class Limits:
    """Who may ask now. There is one of a server.

    Args:
        service: The service.
        clock: As of `Buckets`.
    """

    def __init__(self, service: Service, clock: Clock = time.monotonic) -> None:
        self._service, self._clock = service, clock
        self._requests, self._guesses = Buckets(clock), Buckets(clock)
        self._shown, self._stamped = Remembered(), Remembered()
        self._lock = threading.Lock()
        self._policy: tuple[float, Policy] | None = None

    def policy(self) -> Policy:
        """Return the policy as it was at most a moment ago; requests that only ask for a limit do not wait for it."""
        found = self._policy
        if found is None or self._clock() - found[0] > FRESH:
            found = self._policy = (self._clock(), self._service.policy())
        return found[1]

    def admit(self, address: str | None, secret: str) -> tuple[Key, dict[str, str]]:
        """Return the key that somebody shows, and the headers about how often it may still be used.

        Raises:
            Refused: 401 for a wrong one; 429 for one that was used too often, and where an address has guessed too often.
        """
        place = network(address)
        guess = (place, keys.digest(secret))
        with self._lock:
            # What an address has shown before is no guess: a program with an old key locks nobody out.
            repeated = guess in self._shown
        if not repeated:
            left = self._guesses.take(place, GUESSES, count=0)
            if not left.allowed:
                raise too_many(left, "Too many wrong API keys came from your address.", "too_many_wrong_keys")
        with self._service.database.reading() as session:
            try:
                key = keys.authenticate(session, secret)
            except Refused:
                if not repeated:
                    self._guesses.take(place, GUESSES)
                self._remember(guess)
                raise
            owner = session.get(Organisation, key.org_id)
        self._remember(guess)
        return key, self.count(key.id, {} if owner is None else owner.limits)

    def count(self, key: str, own: dict[str, Any]) -> dict[str, str]:
        """Count a request of a key, and return the headers about how often it may still be used.

        Args:
            key: Its id.
            own: What differs for its organisation from the policy's `quota`.

        Raises:
            Refused: 429 for one that was used too often.
        """
        a_minute = own.get("requests_a_minute", self.policy().quota.requests_a_minute)
        taken = None if a_minute is None else self._requests.take(key, a_minute)
        if taken is not None and not taken.allowed:
            raise too_many(taken, f"This key may be used {a_minute} times a minute.", "rate_limit_exceeded")
        self._stamp(key)
        return {} if taken is None else taken.headers

    def _remember(self, guess: tuple[str, str]) -> None:
        with self._lock:
            self._shown[guess] = True

    def _stamp(self, key: str) -> None:
        """Note that a key is used, if that was not noted within the minute."""
        with self._lock:
            at = self._clock()
            if at - self._stamped.get(key, -math.inf) < keys.EVERY_MINUTE:
                return
            self._stamped[key] = at
        keys.stamp(self._service.database, key)


def too_many(taken: Taken, message: str, code: str) -> Refused:
    """Return the answer to whom has asked too often, with when to ask again."""
    seconds = max(1, math.ceil(taken.wait))
    headers = {"Retry-After": str(seconds), "retry-after-ms": str(math.ceil(taken.wait * 1000)), **taken.headers}
    return Refused(429, f"{message} Try again in {seconds} s.", code=code, kind="requests", headers=headers)


def network(address: str | None) -> str:
    """Return what counts as one address: of IPv6 the network, since whoever has one address there has all of it."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return address or "unknown"
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def address_of(request: Request) -> str | None:
    """Return the address that a request comes from."""
    return None if request.client is None else request.client.host
