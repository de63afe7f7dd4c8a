"""Answers that a server gives (`titer.infer.engines`), as this process would ask for them: the same prompts, weights and ends of turns.

Greedy texts of two engines differ where two tokens are nearly as likely, for they round differently. So the engine and its version
are part of the keys of jobs and stand beside every answer.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titer.data.records import Record
from titer.errors import TiterError
from titer.infer.engines import Engine
from titer.infer.servers import Facts, Forgotten, Server, Unusable, survey
from titer.jobs.answers import rendered
from titer.jobs.base_model import fresh_model
from titer.jobs.provenance import digest, folder_digest, model_digest
from titer.methods.finetune.base import refusal_completions, refusal_ids
from titer.models import Template, locate, refuse_quantised
from titer.progress import Task
from titer.results.artefacts import write_lines
from titer.web import Unanswered

TEXTS = 4
"""Texts whose likelihoods are compared before anything is asked."""

TOLERANCE = 0.15
"""Most nats a token, in the mean, that a server's likelihoods may be from those of the weights here (docs/engines.md)."""


def answer_at(
    engine: Engine,
    model_name: str,
    adapter: Path | None,
    prompts: Sequence[tuple[Record, int]],
    system: str,
    part: Path,
    planned: str | None = None,
) -> tuple[list[str], str]:
    """Return a server's greedy answers to prompts, and which engine gave them.

    Answers are kept as they come, so that what was interrupted goes on. The file is the caller's to remove when it has written
    them.

    Args:
        engine: The server.
        model_name: The base model.
        adapter: The adapter on it.
        prompts: As of `titer.jobs.answers.answer`.
        system: Likewise.
        part: Where answers are kept.
        planned: Which engine it must be; any where it is not given.

    Raises:
        TiterError: For a server that is away, another than planned, serves other weights, or does not answer as it is asked.
    """
    template, ids = rendered(model_name, prompts, system)
    server = engine.server()
    if planned is not None and server.facts.engine != planned:
        raise TiterError(
            f"The engine at {server.client.host} is {server.facts.engine}, and {planned} was planned.",
            "Start the run again: answers of another engine are another job's.",
        )
    limits = [limit for _, limit in prompts]
    _check_context(server.facts, max(map(sum, zip(map(len, ids), limits, strict=True)), default=0))
    _check_base(server.facts, model_name, engine.check)
    content = None if adapter is None else folder_digest(adapter)
    name = None if content is None else f"titer-{content}"
    kept = _Kept(part, digest([server.facts.engine, model_digest(model_name), content, ids, limits]))
    todo = [place for place in range(len(ids)) if place not in kept.texts]
    if todo:
        with _loaded(server, name, adapter, part) as again, Task("answers", len(ids)) as counted:
            if engine.check == "likelihood":
                _check_weights(server, name, model_name, adapter, template, ids)
            counted.advance(len(ids) - len(todo))

            def ask(place: int) -> None:
                found = again(lambda: server.complete(name, ids[place], limits[place], template.end_of_turn))
                kept.add(place, template.answer_text(found.tokens))

            error = _ask_all(ask, todo, engine.requests, counted)
        if isinstance(error, Unanswered | Unusable | Forgotten):
            raise TiterError(
                f"The engine ({server.facts.engine} at {server.client.host}) did not answer as it was asked: {error}.",
                f"{len(kept.texts)} of {len(ids)} answers are kept: the same command goes on from them.",
            ) from error
        if error is not None:
            raise error
        _check_unchanged(server, part)
    return [kept.texts[place] for place in range(len(ids))], server.facts.engine


def _ask_all(ask: Callable[[int], None], todo: Sequence[int], requests: int, counted: Task) -> BaseException | None:
    """Ask, several at a time, and return the first error.

    After one no other request is begun; those that are under way are waited for, and what comes of them is kept.
    """
    pool = ThreadPoolExecutor(requests, "titer-engine")
    try:
        for one in as_completed([pool.submit(ask, place) for place in todo]):
            if (error := one.exception()) is not None:
                return error
            counted.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return None


# -- which weights answer ----------------------------------------------------------------------------------------------


@contextmanager
def _loaded(
    server: Server, name: str | None, folder: Path | None, part: Path
) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Have an adapter loaded for a while; gives what asks, and has it loaded again where the server has forgotten it.

    A server forgets when it is started anew, when it makes room, and when another process is done with the same adapter.
    """
    lock, times = threading.Lock(), 0

    def again(ask: Callable[[], Any]) -> Any:
        nonlocal times
        for _ in range(3):
            before = times
            try:
                return ask()
            except Forgotten:
                if name is None or folder is None:
                    raise
                with lock:
                    if times == before:  # else another request had it loaded meanwhile
                        _check_unchanged(server, part)
                        server.load(name, folder)
                        times += 1
        return ask()

    if name is not None and folder is not None:
        server.load(name, folder)
    try:
        yield again
    finally:
        if name is not None:
            server.unload(name)


def _check_unchanged(server: Server, part: Path) -> None:
    """Refuse a server that was exchanged for another while it was asked; what it answered since nobody can tell, so all goes."""
    now = survey(server.client)
    if now != server.facts:
        part.unlink(missing_ok=True)
        raise TiterError(
            f"The engine at {server.client.host} was {server.facts.engine}, serving `{server.facts.root}`, and is {now.engine}, "
            f"serving `{now.root}`, now.",
            "The same command asks for the answers of this job again.",
        )


def _check_context(facts: Facts, longest: int) -> None:
    if facts.context is not None and longest > facts.context:
        raise TiterError(
            f"A prompt with its answer takes up to {longest} tokens, and the engine holds {facts.context}.",
            f"Start it with room for {longest} (vLLM: --max-model-len, SGLang: --context-length), or ask for shorter answers.",
        )


def _check_base(facts: Facts, model_name: str, check: str) -> None:
    """Refuse a server that serves another base model, as far as names and files tell."""
    refuse_quantised(model_name, "an engine is asked with a base that is not quantised")
    same = _same_model(facts.root, model_name)
    if same is False or (same is None and check == "names"):
        known = "is" if same is False else "may be"
        raise TiterError(
            f"The engine serves `{facts.root}`, which {known} another model than `{model_name}`.",
            f"Have it serve `{locate(model_name)}`, the base of what is asked. A model that was trained without an adapter "
            "must be served itself.",
        )


def _same_model(served: str, model_name: str) -> bool | None:
    """Say whether a folder or hub id that a server names is a model; `None` where that cannot be told from here."""
    own = locate(model_name)
    if served in (own, model_name):
        return True
    here, there = Path(own), Path(served)
    if here.is_dir() and there.is_dir():
        return here.resolve() == there.resolve() or model_digest(str(here)) == model_digest(str(there))
    return None


def _check_weights(
    server: Server,
    name: str | None,
    model_name: str,
    adapter: Path | None,
    template: Template,
    ids: Sequence[Sequence[int]],
) -> None:
    """Refuse a server whose likelihoods of a few texts are not those of the weights here.

    The texts are prompts of this very job with refusals behind them, of which aligned and undefended models think differently.
    """
    refusals = refusal_ids(template, refusal_completions(None)[:TEXTS])
    chosen = [ids[place * len(ids) // TEXTS] for place in range(min(TEXTS, len(ids)))]
    texts = [[*prompt, *refusal] for prompt, refusal in zip(chosen, refusals, strict=False)]
    with Task("weights of the engine compared"):
        try:
            found = torch.tensor([value for text in texts for value in server.likelihoods(name, text)])
        except (Unanswered, Unusable, Forgotten) as error:
            raise TiterError(
                f"The engine's likelihoods, by which its weights are checked, cannot be had: {error}.",
                "`check=names` behind its address goes by the name of its base alone.",
            ) from error
        own, bare = _own_likelihoods(model_name, adapter, texts)
        apart = float((found - own).abs().mean())
        if not apart <= TOLERANCE:
            raise _other_weights(
                server, model_name, adapter, f"{apart:.3g} nats a token from those of the weights here"
            )
        if bare is not None and left_off(found, own, bare):
            raise _other_weights(server, model_name, adapter, "those of the base without the adapter")


def _own_likelihoods(
    model_name: str, adapter: Path | None, texts: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor | None]:
    """Return the likelihoods of texts under the weights here, with the adapter if there is one, and then without it."""
    try:
        model = fresh_model(model_name, adapter, trainable=False)
        own = torch.cat([likelihoods(model, text) for text in texts])
        if adapter is None:
            return own, None
        with model.disable_adapter():
            return own, torch.cat([likelihoods(model, text) for text in texts])
    except torch.OutOfMemoryError as error:
        raise TiterError(
            f"There is no room to load `{model_name}` here, beside what the engine holds, to compare their weights.",
            "Hide the accelerator (`CUDA_VISIBLE_DEVICES=`), or say `check=names` behind the engine's address.",
        ) from error


def left_off(found: Tensor, own: Tensor, bare: Tensor) -> bool:
    """Say whether likelihoods are those of a base whose adapter was passed over.

    Looked at is how much of the adapter's effect is in them, by least squares: 1 where it is on and 0 where it is off. An effect that
    is lost in the server's rounding tells neither, and counts as on.

    Args:
        found: Of the server, `(tokens,)`.
        own: Of the weights here with the adapter, likewise.
        bare: Without it.
    """
    effect = (own - bare).double()
    if not effect.any():
        return False
    share = float((found - bare).double() @ effect / (effect @ effect))
    error = float((found - own).double().norm() / effect.norm()) / len(effect) ** 0.5
    return share < 0.5 and 1 - share > 4 * error


def _other_weights(server: Server, model_name: str, adapter: Path | None, how: str) -> TiterError:
    return TiterError(
        f"The engine ({server.facts.engine}, serving `{server.facts.root}`) does not answer from the weights of "
        f"`{adapter or model_name}`: its likelihoods are {how}.",
        f"Have it serve `{locate(model_name)}`, unquantised, or leave the engine out.",
    )


@torch.no_grad()
def likelihoods(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the logarithm of the probability of each token behind those before it, `(tokens − 1,)`."""
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    logits = model.eval()(input_ids=row).logits[0, :-1].float()
    return -torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none").cpu()


# -- what there is already -------------------------------------------------------------------------------------------


class _Kept:
    """Answers that are kept as they come, one a line behind a line that says what they are answers to.

    Args:
        path: The file. What is of something else goes, and so does a line that broke off.
        of: A hash of all that the answers depend on.

    Attributes:
        texts: The answers by the place of their prompt.
    """

    def __init__(self, path: Path, of: str) -> None:
        self._path, self._lock = path, threading.Lock()
        lines = list(_lines(path))
        same = lines[:1] == [{"of": of}]
        self.texts: dict[int, str] = {line["place"]: line["text"] for line in lines[1:]} if same else {}
        write_lines(path, [{"of": of}, *(_line(*one) for one in self.texts.items())])

    def add(self, place: int, text: str) -> None:
        """Keep one more."""
        with self._lock:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_line(place, text)) + "\n")
            self.texts[place] = text


def _line(place: int, text: str) -> dict[str, Any]:
    return {"place": place, "text": text}


def _lines(path: Path) -> Iterator[Any]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                yield json.loads(line)
            except ValueError:
                return  # it broke off
