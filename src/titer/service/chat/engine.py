"""The engine: one thread that decodes the answers to all requests together, a token of each in every step.

Requests wait in a line. Between two steps those at its front whose base model is the one at work and whose adapter is in memory
join the batch. An adapter is fetched in another thread meanwhile; another base model waits until the batch has ended, and so does
everything behind it, so that nobody waits for ever.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from titer.service.chat.bank import BASE, Bank, Layers
from titer.service.chat.decoder import Decoder
from titer.service.chat.failures import closing, fail, overloaded
from titer.service.chat.pieces import Adapter, Bounds, Fetch, Ticket, Unusable

logger = logging.getLogger(__name__)

LOOK = 30.0
"""After how many seconds adapters in memory are looked up again: those of models that were deleted or held are dropped."""

PREFILL = 8192
"""Most tokens, with padding, of prompts that are run in one pass; a longer one is run by itself."""


class Engine:
    """Answers requests.

    Args:
        fetch: Brings adapters.
        unusable: Which of some adapters' models may not be used any more.
        bounds: How much it takes on; may be set anew.
    """

    def __init__(self, fetch: Fetch, unusable: Unusable, bounds: Bounds) -> None:
        self._fetch, self._unusable, self.bounds = fetch, unusable, bounds
        self._condition = threading.Condition()
        self._line: deque[Ticket] = deque()
        self._forgotten: set[str] = set()
        self._closed = False
        self._thread: threading.Thread | None = None
        # From here on only the engine's own thread touches anything.
        self._bases: OrderedDict[str, Decoder] = OrderedDict()
        self._now: Decoder | None = None
        self._reader = ThreadPoolExecutor(1, "titer-chat-adapters")
        self._reading: dict[str, Future[Layers]] = {}
        self._known: dict[str, Adapter] = {}
        self._looked = time.monotonic()

    # -- for other threads ---------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """Let a request wait for its turn.

        Raises:
            Refused: 429 when too many wait.
        """
        with self._condition:
            if self._closed:
                raise closing()
            if len(self._line) >= self.bounds.waiting:
                raise overloaded()
            self._line.append(ticket)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="titer-chat", daemon=True)
                self._thread.start()
            self._condition.notify()

    def forget(self, name: str) -> None:
        """Drop the adapter of a model that was deleted or held, as soon as no answer is being given with it."""
        with self._condition:
            self._forgotten.add(name)
            self._condition.notify()

    def close(self) -> None:
        """Stop; whoever still waits is told so."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()
        self._reader.shutdown(cancel_futures=True)

    @property
    def load(self) -> dict[str, int]:
        """How much it has to do: answers that are decoded, requests that wait, adapters and base models in memory."""
        loaded = list(self._bases.values())
        return {
            "answers": sum(map(len, loaded)),
            "waiting": len(self._line),
            "adapters": sum(len(one.bank.adapters) for one in loaded),
            "bases": len(loaded),
        }

    # -- the engine's thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with torch.no_grad():
            while self._wait():
                try:
                    self._look()
                    self._admit()
                    if self._now is not None:
                        self._now.step()
                except Exception as error:
                    # A fault of the engine's own: what runs now is in doubt, and the next request begins afresh.
                    if self._now is not None:
                        self._now.abandon(error)
        shutdown = closing()
        if self._now is not None:
            self._now.abandon(shutdown)
        fail(self._line, shutdown)

    def _wait(self) -> bool:
        """Wait until there is something to do; returns whether to go on."""
        with self._condition:
            if not self._closed and not self._forgotten and not self._now_running:
                if not self._line:
                    self._condition.wait(LOOK)
                elif self._reading:
                    self._condition.wait(0.005)
            return not self._closed

    @property
    def _now_running(self) -> int:
        return 0 if self._now is None else len(self._now)

    def _look(self) -> None:
        """Drop adapters of models that were deleted or held, and those that were read for nobody."""
        with self._condition:
            gone, wanted = set(self._forgotten), {ticket.adapter.name for ticket in self._line if ticket.adapter}
        for name in [name for name, found in self._reading.items() if found.done() and name not in wanted]:
            del self._reading[name]
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            kept = {name for one in self._bases.values() for name in one.bank.adapters}
            self._known = {name: adapter for name, adapter in self._known.items() if name in kept}
            try:
                gone |= set(self._unusable(list(self._known.values())))
            except Exception:  # of a database that is away for a moment; each request asks it anyway
                logger.warning("Which models are gone could not be looked up.", exc_info=True)
        for name in gone:
            if all(one.bank.drop(name) for one in self._bases.values()):
                with self._condition:
                    self._forgotten.discard(name)

    def _admit(self) -> None:
        """Let requests from the front of the line begin, as many as fit."""
        begin: list[tuple[Ticket, int]] = []
        longest, ahead = 0, False
        with self._condition:
            line = list(self._line)
        for ticket in line:
            if ticket.is_cancelled:
                self._leave_line(ticket)
                continue
            busy = self._now_running + sum(other.choices for other, _ in begin)
            longest = max(longest, len(ticket.prompt))
            # One that is larger than there is ever room for gets its turn by itself.
            if busy and busy + ticket.choices > self.bounds.answers:
                break
            if begin and longest * (len(begin) + 1) > PREFILL:
                break
            try:
                if not self._has_base(ticket, may_change=not busy and not ahead):
                    break
                owner = self._owner(ticket)
            except Exception as error:  # of weights that cannot be read: whoever wants them is told
                self._leave_line(ticket)
                fail([ticket], error)
                continue
            if owner is None:
                if self._is_read(ticket):
                    break  # and there is no room for it: nobody overtakes, so that there will be
                ahead = True
                continue
            self._leave_line(ticket)
            begin.append((ticket, owner))
        if begin and self._now is not None:
            self._now.begin(begin)

    def _leave_line(self, ticket: Ticket) -> None:
        with self._condition:
            self._line.remove(ticket)

    def _has_base(self, ticket: Ticket, may_change: bool) -> bool:
        """Whether a request's base model is the one at work; where it `may_change`, it is from now on."""
        if self._now is None or self._now.bank.name != ticket.base:
            if not may_change:
                return False
            self._now = None
            if ticket.base not in self._bases:
                while len(self._bases) >= self.bounds.bases:
                    name, _ = self._bases.popitem(last=False)
                    logger.info("`%s` leaves the memory.", name)
                self._bases[ticket.base] = Decoder(Bank(ticket.base, ticket.template))
            self._bases.move_to_end(ticket.base)
            self._now = self._bases[ticket.base]
        return True

    def _owner(self, ticket: Ticket) -> int | None:
        """Return the number of a request's adapter, held for it; `None` while it is not in memory."""
        adapter = ticket.adapter
        if adapter is None or self._now is None:
            return BASE
        bank = self._now.bank
        owner = bank.hold(adapter.name, ticket.choices)
        if owner is not None:
            return owner
        found = self._reading.get(adapter.name)
        if found is None:
            self._reading[adapter.name] = self._reader.submit(self._read, bank, adapter)
            return None
        if not found.done():
            return None
        if found.exception() is not None:
            del self._reading[adapter.name]
        if not bank.add(adapter.name, found.result(), self.bounds.adapters):
            return None
        del self._reading[adapter.name]
        self._known[adapter.name] = adapter
        return bank.hold(adapter.name, ticket.choices)

    def _is_read(self, ticket: Ticket) -> bool:
        return ticket.adapter is not None and self._reading[ticket.adapter.name].done()

    def _read(self, bank: Bank, adapter: Adapter) -> Layers:
        """Fetch an adapter and return its weights; the copy is deleted at once."""
        folder = Path(tempfile.mkdtemp(prefix="titer-chat-"))
        try:
            return bank.read(self._fetch(adapter, folder / "model"))
        finally:
            shutil.rmtree(folder)
