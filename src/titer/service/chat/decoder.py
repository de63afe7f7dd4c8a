"""All answers of one base model that are being decoded: a step takes one more token of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from titer.errors import TiterError
from titer.service.chat.answers import Answer
from titer.service.chat.bank import Bank
from titer.service.chat.batch import Batch, find_way
from titer.service.chat.failures import fail
from titer.service.chat.pieces import Ticket


class Decoder:
    """Decodes.

    Args:
        bank: The base model with its adapters.

    Attributes:
        way: How it decodes, of `titer.service.chat.batch.WAYS`.
    """

    def __init__(self, bank: Bank) -> None:
        self.bank, self.way = bank, find_way(bank)
        self._running: list[tuple[Batch, list[Answer]]] = []

    def __len__(self) -> int:
        return sum(len(answers) for _, answers in self._running)

    def begin(self, tickets: Sequence[tuple[Ticket, int]]) -> None:
        """Run the prompts of requests and take their first tokens; what goes on joins the others.

        Args:
            tickets: Requests, each with the number of its adapter, which is held for so many rows as it has choices.
        """
        tickets = sorted(tickets, key=lambda pair: pair[1])
        answers = [Answer(ticket, choice, owner) for ticket, owner in tickets for choice in range(ticket.choices)]
        try:
            if self.way == "together":
                prompts, owners = [ticket.prompt for ticket, _ in tickets], [owner for _, owner in tickets]
                batch = Batch.begin(self.bank, prompts, owners)
                scores = batch.step()
                # The prompt of several answers is run once.
                copies = [row for row, (ticket, _) in enumerate(tickets) for _ in range(ticket.choices)]
                batch.select(copies)
                self._take(batch, answers, scores[copies])
                return
            for answer in answers:
                batch = Batch.begin(self.bank, [answer.ticket.prompt], [answer.owner], cached=self.way != "plain")
                self._take(batch, [answer], batch.step())
        except Exception as error:  # whatever a model's own code, or a lack of memory, makes of it
            self._release(answers)
            fail([ticket for ticket, _ in tickets], error)

    def step(self) -> None:
        """Take one more token of every answer."""
        running, self._running = self._running, []
        for batch, answers in running:
            try:
                going = self._without_cancelled(batch, answers)
                if going:
                    self._take(batch, going, batch.step())
            except Exception as error:  # as above; other batches and later requests go on
                self._release(answers)
                fail([answer.ticket for answer in answers], error)

    def abandon(self, error: Exception) -> None:
        """Let all answers fail."""
        running, self._running = self._running, []
        for _, answers in running:
            self._release(answers)
            fail([answer.ticket for answer in answers], error)

    def _without_cancelled(self, batch: Batch, answers: Sequence[Answer]) -> list[Answer]:
        """Take the answers out of a batch that nobody waits for; returns the others."""
        alive = [place for place, answer in enumerate(answers) if not answer.ticket.is_cancelled]
        if len(alive) < len(answers):
            self._release(answer for answer in answers if answer.ticket.is_cancelled)
            if alive:
                batch.select(alive)
                batch.trim()
        return [answers[place] for place in alive]

    def _take(self, batch: Batch, answers: Sequence[Answer], scores: Tensor) -> None:
        """Let every answer of a batch choose its token, and keep those that go on."""
        greedy, broken = scores.argmax(-1).tolist(), scores.isnan().any(-1).tolist()
        alive: dict[int, int] = {}
        for row, answer in enumerate(answers):
            if broken[row]:
                fail([answer.ticket], TiterError(f"What `{self.bank.name}` says is no number: its weights ran away."))
                self._release([answer])
                continue
            token = answer.take(scores[row], greedy[row])
            if answer.finish is None:
                alive[row] = token
            else:
                self._release([answer])
                answer.ticket.end(len(answer.text.tokens))
        if not alive:
            return
        batch.go_on(list(alive), list(alive.values()))
        going = [answers[row] for row in alive]
        if self.way == "together" and self._running:
            first, others = self._running[0]
            both = [*others, *going]
            self._running[0] = (first, [both[row] for row in first.join(batch)])
        else:
            batch.trim()
            self._running.append((batch, going))

    def _release(self, answers: Iterable[Answer]) -> None:
        """Let go of the adapters of answers that have ended; of each once."""
        for answer in answers:
            if answer.holds:
                answer.holds = False
                self.bank.release(answer.owner)
