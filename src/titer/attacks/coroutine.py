"""Loops that can be stopped in their middle, one of which moves at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import greenlet
import numpy
import torch

from titer.attacks.failures import blame


class Stopped(BaseException):
    """Unwinds a coroutine whose fleet gave up; not an error of its own, so no `except Exception` holds it."""


class Coroutine:
    """A function that moves only when it is resumed, until it asks for something or ends.

    Its random numbers (Python's, NumPy's, torch's) are its own: it draws what it would draw alone. It is a greenlet and
    no thread: every thread that computes brings OpenMP workers of its own, and with more workers than cores all of them,
    those of the base's passes too, fall from spinning to sleeping while they wait for work (1.5 times as slow).

    Args:
        function: What to run.
        randomness: The state that its random numbers begin from.

    Attributes:
        request: What it asked for when it last stopped; `None` before it began and once it has ended.
        error: What it ended with, if it failed.
    """

    def __init__(self, function: Callable[[], Any], randomness: tuple[Any, ...]) -> None:
        self.request: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._greenlet = greenlet.greenlet(self._run)
        self._randomness = randomness

    def _run(self, _: Any) -> None:
        try:
            self._function()
        except BaseException as error:
            self.error = error
        self.request = None

    def resume(self, answer: Any = None) -> bool:
        """Hand over what was asked for, wait until the next request or the end, and say whether it goes on.

        Raises:
            BaseException: What it ended with, when neither the machine nor the attack is to blame (`titer.attacks.failures`):
                a bug, or somebody who wants the whole program to end.
        """
        self._switch(lambda: self._greenlet.switch(answer))
        if self.error is not None and blame(self.error) is None:
            raise self.error
        return self.request is not None

    def _switch(self, switch: Callable[[], Any]) -> None:
        outside = random_state()
        restore_random_state(self._randomness)
        self._greenlet.parent = greenlet.getcurrent()
        switch()
        self._randomness = random_state()
        restore_random_state(outside)

    def ask(self, request: Any) -> Any:
        """Called from within: stop here, and return what `resume` hands over."""
        self.request = request
        return self._greenlet.parent.switch()

    def stop(self) -> None:
        """End the coroutine where it stands."""
        if self._greenlet:  # begun and not ended
            self._switch(lambda: self._greenlet.throw(Stopped))


def random_state() -> tuple[Any, ...]:
    """Return where the generators of Python, NumPy and torch stand."""
    state = (random.getstate(), numpy.random.get_state(), torch.get_rng_state())
    return (*state, torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else state


def restore_random_state(state: tuple[Any, ...]) -> None:
    """Put the generators back to where they stood."""
    random.setstate(state[0])
    numpy.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if len(state) > 3:
        torch.cuda.set_rng_state_all(state[3])
