"""vLLM and SGLang as servers that titer asks: their dialects of OpenAI's completions, with LoRA adapters loaded at run time.

Prompts are token ids, so that nothing is rendered twice, and answers are token ids too. vLLM from 0.10.2 and SGLang versions whose
completions know `return_token_ids` tell them.

Read in the sources of both (`vllm/entrypoints/openai`, `sglang/srt/entrypoints`), which were not run here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.errors import TiterError
from titer.files import read_json
from titer.web import Client, Unanswered

VLLM, SGLANG = "vllm", "sglang"
TITLES = {VLLM: "vLLM", SGLANG: "SGLang"}

LOAD = {VLLM: "/v1/load_lora_adapter", SGLANG: "/load_lora_adapter"}
UNLOAD = {VLLM: "/v1/unload_lora_adapter", SGLANG: "/unload_lora_adapter"}
COMPLETIONS = "/v1/completions"

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be."""

ALREADY = "already"
"""Stands in what a server says of an adapter that it holds under that name."""

_START = {
    VLLM: "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank {rank}",
    SGLANG: "python -m sglang.launch_server --model-path BASE --enable-lora --max-lora-rank {rank} "
    "--lora-target-modules all",
}

_UNREAD = ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "target_parameters",
           "trainable_token_indices", "lora_bias", "arrow_config", "alora_invocation_tokens")  # fmt: skip
"""Settings of an adapter that these servers refuse, or pass over and would answer from other weights."""


@dataclass(frozen=True)
class Facts:
    """What a server says of itself.

    Attributes:
        dialect: `vllm` or `sglang`.
        version: Of the engine.
        base: The name that the base model is served under.
        root: Folder or hub id that it was loaded from.
        context: Most tokens of a prompt with its answer; `None` where that is not told.
        max_rank: Highest rank of an adapter; `None` where that is not told (vLLM).
        precision: Of the weights, and how they are quantised, where it is told (SGLang).
    """

    dialect: str
    version: str
    base: str
    root: str
    context: int | None = None
    max_rank: int | None = None
    precision: str = ""

    @property
    def engine(self) -> str:
        """What answers depend on: the engine, its version and its precision where that is told."""
        return f"{TITLES[self.dialect]} {self.version}" + (f" ({self.precision})" if self.precision else "")


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        tokens: Its token ids, with the one that ended the turn if any.
        finish: `stop` or `length`.
    """

    tokens: list[int]
    finish: str


class Unusable(Exception):
    """An answer that came and is not what was asked for; asking again would not help."""


class Forgotten(Exception):
    """A server does not know an adapter (any more)."""


def load_body(name: str, folder: str) -> dict[str, Any]:
    """Return what is posted to have an adapter loaded."""
    return {"lora_name": name, "lora_path": folder}


def unload_body(name: str) -> dict[str, Any]:
    """Return what is posted to have it dropped."""
    return {"lora_name": name}


def survey(client: Client) -> Facts:
    """Ask a server what it is.

    Raises:
        TiterError: For one that does not answer, is neither vLLM nor SGLang, or serves several base models.
    """
    try:
        cards = client.json("/v1/models")["data"]
        bases = [card for card in cards if not card.get("parent")]  # one may have several names
        owners, roots = {str(card.get("owned_by")) for card in bases}, {str(card.get("root")) for card in bases}
        if len(owners) != 1 or len(roots) != 1 or not owners <= TITLES.keys():
            raise TiterError(
                f"The engine at {client.host} serves {len(roots)} base models of {', '.join(sorted(owners)) or 'nobody'}.",
                "titer asks a server of vLLM or SGLang that serves one base model.",
            )
        card, (dialect,) = bases[0], owners
        common: dict[str, Any] = {
            "dialect": dialect,
            "base": str(card["id"]),
            "context": _count(card.get("max_model_len")),
        }
        if dialect == VLLM:
            version = _word(client.json("/version")["version"])
            return Facts(**common, version=version, root=str(card.get("root") or card["id"]))
        told = _server_info(client)
        precision = " ".join(_word(told[name]) for name in ("dtype", "quantization") if told.get(name))
        return Facts(
            **common,
            version=_word(told["version"]),
            root=str(told["model_path"]),
            max_rank=_count(told.get("max_lora_rank")),
            precision="" if precision == "auto" else precision,
        )
    except Unanswered as error:
        raise TiterError(f"The engine cannot be asked: {error}.", "Is the server up, and its address right?") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise TiterError(
            f"The engine at {client.host} does not say what it is ({type(error).__name__}: {error}).",
            "titer asks servers of vLLM and SGLang.",
        ) from error


def _count(told: Any) -> int | None:
    """Return a number that a server tells; `None` where it tells none."""
    if told is not None and not isinstance(told, int):
        raise TypeError(f"`{told!s:.80}` is no number")
    return told


def _word(told: Any) -> str:
    """Return what a server calls a version or a precision, which goes into keys and onto pages."""
    if not re.fullmatch(r"[\w.+-]{1,80}", str(told)):
        raise TypeError(f"`{told!s:.80}` is no version, and no precision")
    return str(told)


def _server_info(client: Client) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = client.json("/get_server_info")
    except Unanswered as error:
        if error.status != 404:
            raise
        found = client.json("/server_info")  # what later versions call it
    return found


class Server:
    """A server that is asked in its dialect.

    Args:
        client: Reaches it.
        facts: What it is (`survey`).
    """

    def __init__(self, client: Client, facts: Facts) -> None:
        self.client, self.facts = client, facts

    def load(self, name: str, folder: Path) -> None:
        """Have an adapter loaded, which the server must see under the same path.

        Args:
            name: What it is to be called, made of its content: one that the server holds under that name already is taken for it.
            folder: Where it lies.

        Raises:
            TiterError: For an adapter that the server does not take, with what to do about it.
        """
        rank = check_adapter(folder, self.facts)
        dialect = self.facts.dialect
        try:
            self.client.text(LOAD[dialect], load_body(name, str(folder.absolute())))
        except Unanswered as error:
            if ALREADY in str(error):
                return
            raise self._not_loaded(folder, rank, error) from error

    def _not_loaded(self, folder: Path, rank: int, error: Unanswered) -> TiterError:
        said, start = str(error), _START[self.facts.dialect].format(rank=allowed_rank(rank))
        if re.search(r"max[-_ ]lora[-_ ]rank", said):
            return _rank_error(folder, rank, self.facts, said)
        if error.status == 404 and "adapter" not in said.lower():
            return TiterError(f"The engine loads no adapters at run time: {said}.", f"Start it so: {start}")
        if "enable" in said.lower():
            return TiterError(f"The engine was started without LoRA: {said}.", f"Start it so: {start}")
        return TiterError(
            f"The engine does not load `{folder}`: {said}.",
            "It must see the folder under the same path: run it on this machine, or share the file system.",
        )

    def unload(self, name: str) -> None:
        """Have an adapter dropped; one that is gone already, or a server that is, is no error: nothing depends on it."""
        try:
            self.client.text(UNLOAD[self.facts.dialect], unload_body(name))
        except Unanswered:
            return

    def complete(self, adapter: str | None, prompt: Sequence[int], limit: int, stops: Collection[int]) -> Completion:
        """Return the greedy continuation of a prompt.

        Args:
            adapter: The name of a loaded one; `None` for the base.
            prompt: Token ids.
            limit: Most tokens.
            stops: Token ids that end the turn, and nothing else does.

        Raises:
            Unanswered: When nothing came.
            Unusable: When what came is no answer to this prompt.
            Forgotten: When the server does not know the adapter.
        """
        # Penalties are set because a server may have others of the model's own as defaults. vLLM would also end at tokens of the model's
        # own list; SGLang, told the same, would end at none.
        body = {
            "prompt": list(prompt),
            "max_tokens": limit,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "stop_token_ids": sorted(stops),
            "return_token_ids": True,
            "ignore_eos": self.facts.dialect == VLLM,
            **self._named(adapter),
        }
        return _completion(self._ask(COMPLETIONS, body), prompt, limit, stops)

    def likelihoods(self, adapter: str | None, ids: Sequence[int]) -> list[float]:
        """Return the logarithm of the probability of each token of a text behind those before it, without the first.

        Raises:
            As `complete`.
        """
        if self.facts.dialect == VLLM:
            body = {
                "prompt": list(ids),
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": 1,
                **self._named(adapter),
            }
            answer = self._ask(COMPLETIONS, body)
            return _read(lambda: _by_token(answer["choices"][0]["prompt_logprobs"], ids), answer)
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "lora_path": adapter,
        }
        answer = self._ask("/generate", body)
        return _read(lambda: _in_order(answer["meta_info"]["input_token_logprobs"], ids), answer)

    def _named(self, adapter: str | None) -> dict[str, Any]:
        """Return how a request names an adapter."""
        if self.facts.dialect == VLLM:
            return {"model": adapter or self.facts.base}
        return {"model": self.facts.base, "lora_path": adapter}

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            return self.client.json(path, body)
        except Unanswered as error:
            # vLLM: 404, “The model … does not exist”. SGLang: 400, “… adapter that has never been loaded”.
            if error.status == 404 or "been loaded" in str(error) or "not loaded" in str(error):
                raise Forgotten(str(error)) from error
            raise


def check_adapter(folder: Path, facts: Facts) -> int:
    """Return an adapter's rank, if these servers read all that it is.

    Raises:
        TiterError: For what they refuse or pass over, and a rank that is too high.
    """
    config = read_json(folder / "adapter_config.json", "Name the folder of a PEFT adapter.")
    odd = [name for name in _UNREAD if config.get(name)]
    odd += [f"bias: {config['bias']}"] if config.get("bias") not in (None, "none") else []
    odd += [f"peft_type: {config.get('peft_type')}"] if config.get("peft_type") != "LORA" else []
    if odd:
        raise TiterError(
            f"`{folder}` has {', '.join(odd)}, which {TITLES[facts.dialect]} does not serve.",
            "Answer in this process: leave the engine out.",
        )
    rank = int(config.get("r", 0))
    if facts.max_rank is not None and rank > facts.max_rank:
        raise _rank_error(folder, rank, facts, f"its highest is {facts.max_rank}")
    return rank


def allowed_rank(rank: int) -> int:
    """Return the least `--max-lora-rank` that holds a rank."""
    return next((allowed for allowed in RANKS if allowed >= rank), rank)


def _rank_error(folder: Path, rank: int, facts: Facts, said: str) -> TiterError:
    modules = " and `--lora-target-modules all`" if facts.dialect == SGLANG else ""
    return TiterError(
        f"`{folder}` is of rank {rank}, and {TITLES[facts.dialect]} takes no such adapter: {said}.",
        f"Start it with `--max-lora-rank {allowed_rank(rank)}`{modules}.",
    )


def _completion(answer: Any, prompt: Sequence[int], limit: int, stops: Collection[int]) -> Completion:
    """Read an answer, and check that it is one to this prompt."""
    choice, usage = _read(lambda: (dict(answer["choices"][0]), answer["usage"]), answer)
    counted = _read(lambda: int(usage["prompt_tokens"]), answer)
    if counted != len(prompt):
        more = " (one more, as if it had put a beginning before the prompt's own)" if counted == len(prompt) + 1 else ""
        raise Unusable(f"it read {counted} tokens{more}, and the prompt has {len(prompt)}")
    read, tokens, finish = (choice.get(name) for name in ("prompt_token_ids", "token_ids", "finish_reason"))
    if read is not None and read != list(prompt):
        raise Unusable("it read other tokens than it was sent")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise Unusable("it tells no token ids: vLLM does from 0.10.2 on, SGLang where it knows `return_token_ids`")
    if finish not in ("stop", "length"):
        raise Unusable(f"it gave up: {finish}")
    if finish == "length" and len(tokens) != limit:
        raise Unusable(f"it cut an answer off at {len(tokens)} tokens, and {limit} were asked for")
    ended_by = (*tokens[-1:], choice.get("matched_stop"), choice.get("stop_reason"))  # as SGLang and vLLM call it
    if finish == "stop" and not any(isinstance(token, int) and token in stops for token in ended_by):
        raise Unusable(f"it ended an answer by a rule of its own, at {ended_by}")
    return Completion(tokens, finish)


def _read(read: Any, answer: Any) -> Any:
    try:
        return read()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"its answer cannot be read ({type(error).__name__} {error}): {str(answer)[:200]}") from error


def _by_token(found: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> list[float]:
    if len(found) != len(ids):
        raise ValueError(f"{len(found)} places of {len(ids)} tokens")
    return [float(place[str(token)]["logprob"]) for place, token in zip(found[1:], ids[1:], strict=True)]


def _in_order(found: Sequence[Sequence[Any]], ids: Sequence[int]) -> list[float]:
    if [place[1] for place in found] != list(ids):
        raise ValueError("other tokens")
    return [float(place[0]) for place in found[1:]]
