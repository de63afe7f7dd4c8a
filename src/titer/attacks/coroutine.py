"""Loops that can be stopped in their middle, one of which moves at a time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy
import torch


class Stopped(BaseException):
    """Unwinds a coroutine whose fleet gave up; not an error of its own, so no `except Exception` holds it."""


class Coroutine:
    """A function in a thread that moves only when it is resumed, until it asks for something or ends.

    Its random numbers (Python's, NumPy's, torch's) are its own: it draws what it would draw alone.

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
        self._answer: Any = None
        self._stopping = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._randomness = randomness
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._stopping:
                self._function()
        except BaseException as error:
            self.error = error
        self.request = None
        self._back.release()

    def resume(self, answer: Any = None) -> bool:
        """Hand over what was asked for, wait until the next request or the end, and say whether it goes on."""
        outside = random_state()
        _restore(self._randomness)
        self._answer = answer
        self._turn.release()
        self._back.acquire()
        self._randomness = random_state()
        _restore(outside)
        if self.error is not None and not isinstance(self.error, (Exception, Stopped)):
            raise self.error  # somebody wants the whole program to end
        return self.request is not None

    def ask(self, request: Any) -> Any:
        """Called from within: stop here, and return what `resume` hands over."""
        self.request = request
        self._back.release()
        self._turn.acquire()
        if self._stopping:
            raise Stopped
        return self._answer

    def stop(self) -> None:
        """End the coroutine where it stands."""
        if self._thread.is_alive():
            self._stopping = True
            self.resume()
            self._thread.join()


def random_state() -> tuple[Any, ...]:
    """Return where the generators of Python, NumPy and torch stand."""
    state = (random.getstate(), numpy.random.get_state(), torch.get_rng_state())
    return (*state, torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else state


def _restore(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    numpy.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if len(state) > 3:
        torch.cuda.set_rng_state_all(state[3])
