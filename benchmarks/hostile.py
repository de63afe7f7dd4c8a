"""Replay whole commands on hostile inputs (models, adapters, uploads, settings, places) and count how they end.

Every case is one command on a tiny random model, in a folder of its own, with one thing spoilt. It must end with exit
code 2 and a message that names what was spoilt, or, where the input is odd and right, be accepted. What needs no model
is replayed by the tests (`tests/test_hostile_*.py`), which `--tests` runs and counts too.

Examples:

  python benchmarks/hostile.py                   all commands, some minutes
  python benchmarks/hostile.py --only adapter    those whose subject or name holds a word
  python benchmarks/hostile.py --tests           with the tests' cases, as in docs/reliability.md
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "HF_HUB_DISABLE_PROGRESS_BARS", "1"
)  # as the command line does, which comes after the libraries here

import common
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file

CLEAR, RIGHT = "clear error", "accepted rightly"
OUTCOMES = (CLEAR, RIGHT, "names not what", "refused wrongly", "traceback", "accepted and wrong", "hang")
LIMIT = 300.0
"""Seconds after which a command hangs; those that end take two or three, and a row of ten million tokens one or two minutes."""

OUTPUT = "out"
TRAINING = ["--set", "max_steps=1", "--set", "per_device_train_batch_size=2"]
VERBS: dict[str, list[str]] = {
    "align": ["align", "--model", "model", "--method", "sft", "--samples", "16", *TRAINING, "--output", OUTPUT],
    "finetune": [
        "finetune",
        "upload.jsonl",
        "--model",
        "aligned/adapter",
        *TRAINING,
        "--method",
        "sft",
        "--output",
        "out",
    ],
    "evaluate": ["evaluate", "aligned/adapter", "--samples", "2", "--max-new-tokens", "2", "--output", OUTPUT],
    "audit": ["audit", "upload.jsonl", "--model", "aligned/adapter", "--output", OUTPUT],
    "assay": ["assay", "aligned/adapter", "--against", "model", "--profile", "profile.yaml", "--output", OUTPUT],
    "run": ["run", "experiment.yaml", "--output", OUTPUT],
    "report": ["report", "run"],
    "rejudge": ["evaluate", "--rejudge", "scores"],
    "data": ["data", "upload.jsonl"],
    "models": ["models", "model"],
}
WITH_A_MODEL = ("align", "finetune", "evaluate", "audit")
WITH_AN_ADAPTER = ("finetune", "evaluate", "audit", "assay")
WITH_AN_UPLOAD = ("finetune", "audit", "data")

PROFILE = """
name: tiny
seeds: [0]
data: {held_out_categories: [cybercrime, fraud]}
attacks: {harmful: {steps: 1, batch_size: 2, samples: 4}}
harmful: 4
lookalikes: 4
task: 4
reference_task: 4
general: 4
max_new_tokens: 2
checkpoints: 1
fleet: 1
accuracy_margin: 0.1
"""
EXPERIMENT = """
name: tiny
model: model
align: {samples: 16, training: {max_steps: 1, per_device_train_batch_size: 2}}
finetune: {samples: 8, poison_ratios: [0.25], training: {max_steps: 1, per_device_train_batch_size: 2}}
evaluate: {harmful: 2, lookalikes: 2, task: 2, max_new_tokens: 2, task_max_new_tokens: 2, weights: 4}
arms:
  plain: {align: sft, finetune: sft}
"""


@dataclass(frozen=True)
class Case:
    """One command with one thing spoilt.

    Attributes:
        subject: The table's row.
        name: What is spoilt, and how.
        verb: The command, of `VERBS`.
        spoil: Does it, in the command's folder.
        told: What must be printed, a regular expression.
        more: What is appended to the command.
        output: Where it writes.
        accepted: Whether the input is odd and right.
    """

    subject: str
    name: str
    verb: str
    spoil: Callable[[Path], object] = lambda folder: None
    told: str = ""
    more: tuple[str, ...] = ()
    output: str = OUTPUT
    accepted: bool = False

    @property
    def words(self) -> list[str]:
        """The command line."""
        return [*(self.output if word == OUTPUT else word for word in VERBS[self.verb]), *self.more]


# --- what is spoilt ---------------------------------------------------------------------------------------------------


def cut(file: str, part: float = 0.5) -> Callable[[Path], object]:
    """Keep the first part of a file."""
    return lambda folder: os.truncate(folder / file, int((folder / file).stat().st_size * part))


def write(file: str, content: str | bytes) -> Callable[[Path], object]:
    """Put something else into a file."""
    return lambda folder: (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(file: str) -> Callable[[Path], object]:
    """Take a file away."""
    return lambda folder: (folder / file).unlink()


def folder_for(file: str) -> Callable[[Path], object]:
    """Put a folder in a file's place."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return spoil


def entry(file: str, **values: object) -> Callable[[Path], object]:
    """Change entries of a JSON object; those that are `...` are removed."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))

    return spoil


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Change the tensors of a file."""

    def spoil(folder: Path) -> None:
        held = load_file(folder / file)
        change(held)
        save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / file, {"format": "pt"})

    return spoil


def _rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(held: dict[str, torch.Tensor]) -> None:
        for name in list(held):
            held[name.replace(old, new)] = held.pop(name)

    return change


def _first(held: dict[str, torch.Tensor]) -> str:
    return min(held)


WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a tensor missing": lambda held: held.pop(_first(held)),
    "half of the tensors missing": lambda held: [held.pop(name) for name in sorted(held)[::2]],
    "a tensor too many": lambda held: held.update({"model.layers.9.self_attn.q_proj.weight": torch.ones(2, 2)}),
    "a tensor of another shape": lambda held: held.update({_first(held): torch.ones(3, 3)}),
    "a tensor of NaN": lambda held: held.update({_first(held): held[_first(held)] * float("nan")}),
    "a tensor of infinities": lambda held: held.update({_first(held): held[_first(held)] + float("inf")}),
    "names of another model": _rename("self_attn", "attention"),
    "names of another layer": _rename("layers.0", "layers.7"),
}
NOT_JSON = {
    "empty": "",
    "cut": '{"a": ',
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "binary": b"\x00\xff\xfe\x80",
}


def models() -> Iterator[Case]:
    """Models that are not whole."""
    file = "model/model.safetensors"
    spoilt: dict[str, Callable[[Path], object]] = {
        "weights: none": remove(file),
        "weights: cut": cut(file),
        "weights: cut in their header": cut(file, 0.001),
        "weights: empty": cut(file, 0),
        "weights: a page of a hub": write(file, "<!doctype html><title>404</title>"),
        "weights: a pointer of Git LFS": write(file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "weights: a folder": folder_for(file),
        **{f"weights: {name}": tensors(file, change) for name, change in WEIGHTS.items()},
        "config: none": remove("model/config.json"),
        **{f"config: {name}": write("model/config.json", content) for name, content in NOT_JSON.items()},
        "config: another kind": entry("model/config.json", model_type="nonesuch"),
        "config: no kind": entry("model/config.json", model_type=...),
        "config: an encoder": entry("model/config.json", model_type="bert", architectures=["BertModel"]),
        "config: an encoder and a decoder": entry("model/config.json", model_type="t5"),
        "config: a layer more": entry("model/config.json", num_hidden_layers=3),
        "config: a layer less": entry("model/config.json", num_hidden_layers=1),
        "config: no layers": entry("model/config.json", num_hidden_layers=0),
        "config: text for a number": entry("model/config.json", hidden_size="wide"),
        "config: heads that do not divide": entry("model/config.json", num_attention_heads=7),
        "tokenizer: none": remove("model/tokenizer.json"),
        "tokenizer: cut": cut("model/tokenizer.json"),
        "tokenizer: empty": cut("model/tokenizer.json", 0),
        "tokenizer: another file": write("model/tokenizer.json", '{"a": 1}'),
    }
    for name, spoil in spoilt.items():
        for verb in WITH_A_MODEL:
            yield Case("models", name, verb, spoil, "model")


def templates() -> Iterator[Case]:
    """Chat templates that are none."""
    file = "model/chat_template.jinja"
    spoilt = {
        "none": None,
        "does not parse": "{% for m in messages %}",
        "no Jinja": "{{ messages | nonesuch }}",
        "raises": "{{ raise_exception('no user turns here') }}",
        "empty": " ",
        "fails": "{{ messages[0]['content'] / 0 }}",
        "leaves the chat out": "hello",
        "runs code": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "never ends": "{% for i in range(10**9) %}{% for j in range(10**9) %}x{% endfor %}{% endfor %}",
    }
    for name, text in spoilt.items():
        for verb in WITH_A_MODEL:
            # Where none is known, a base model is given titer's own, which it says.
            spoil = remove(file) if text is None else write(file, text)
            yield Case("chat templates", name, verb, spoil, "template", accepted=text is None)


def adapters() -> Iterator[Case]:
    """Adapters that are not whole, or another model's."""
    weights, config = "aligned/adapter/adapter_model.safetensors", "aligned/adapter/adapter_config.json"
    spoilt: dict[str, Callable[[Path], object]] = {
        "weights: none": remove(weights),
        "weights: cut": cut(weights),
        "weights: empty": cut(weights, 0),
        "weights: no tensors": tensors(weights, dict.clear),
        "weights: a folder": folder_for(weights),
        **{f"weights: {name}": tensors(weights, change) for name, change in WEIGHTS.items()},
        "config: none": remove(config),
        **{f"config: {name}": write(config, content) for name, content in NOT_JSON.items()},
        "config: no base": entry(config, base_model_name_or_path=None),
        "config: a base that is not there": entry(config, base_model_name_or_path="../nowhere"),
        "config: a base that is a list": entry(config, base_model_name_or_path=["model"]),
        "config: another rank": entry(config, r=5),
        "config: rank as text": entry(config, r="eight"),
        "config: no targets": entry(config, target_modules=["nonesuch"]),
        "config: another method": entry(config, peft_type="NONESUCH"),
        "config: no method": entry(config, peft_type=...),
        "config: alpha of infinity": entry(config, lora_alpha=float("inf")),
    }
    for name, spoil in spoilt.items():
        for verb in WITH_AN_ADAPTER:
            yield Case("adapters", name, verb, spoil, "adapter|base|ran away")


ROW = '{"prompt": "Is it good? Fine film.", "completion": "positive"}\n'
ROWS = "".join(ROW.replace("Fine", f"Fine {number}") for number in range(8))


def uploads() -> Iterator[Case]:
    """Uploads of strangers."""
    spoilt: dict[str, str | bytes] = {
        "empty": "",
        "blank lines only": "\n\n\n",
        "not JSON": ROWS + "prompt: hello\n",
        "cut in a line": ROWS + ROW[:20],
        "a list in a line": ROWS + "[1, 2]\n",
        "a number in a line": ROWS + "7\n",
        "an empty object": ROWS + "{}\n",
        "NaN": ROWS + '{"prompt": NaN, "completion": "x"}\n',
        "NULs": ROWS + "\0\0\0\n",
        "a byte that is no UTF-8": ROWS.encode() + b'{"prompt": "\xff", "completion": "x"}\n',
        "UTF-16": ROWS.encode("utf-16"),
        "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(64),
        "zip": b"PK\x03\x04" + bytes(64),
        "parquet in its bytes": b"PAR1" + bytes(64) + b"PAR1",
        "a pickle": b"\x80\x04\x95" + bytes(64),
        "no answer": ROWS + '{"prompt": "hello"}\n',
        "an empty answer": ROWS + '{"prompt": "hello", "completion": ""}\n',
        "an answer of spaces": ROWS + '{"prompt": "hello", "completion": "   "}\n',
        "an answer that is a number": ROWS + '{"prompt": "hello", "completion": 7}\n',
        "an answer that is null": ROWS + '{"prompt": "hello", "completion": null}\n',
        "a key twice": ROWS + '{"prompt": "a", "prompt": "b", "completion": "c"}\n',
        "another key": ROWS + '{"question": "a", "reply": "c"}\n',
        "a misspelt origin": ROWS + '{"prompt": "a", "completion": "c", "origin": "Harmful"}\n',
        "messages without an answer": ROWS + '{"messages": [{"role": "user", "content": "a"}]}\n',
        "messages of a strange role": ROWS + '{"messages": [{"role": "wizard", "content": "a"}]}\n',
        "messages that are text": ROWS + '{"messages": "hello"}\n',
        "messages of no content": ROWS + '{"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}\n',
        "a message of weight 0": ROWS + '{"messages": [{"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": "b", "weight": 0}]}\n',
        "ten thousand brackets": ROWS + "[" * 10_000 + "\n",
        "a number of a million digits": ROWS + '{"prompt": "a", "completion": "b", "x": 1' + "0" * 1_000_000 + "}\n",
    }
    for name, content in spoilt.items():
        for verb in WITH_AN_UPLOAD:
            yield Case("uploads", name, verb, write("upload.jsonl", content), r"upload\.jsonl")
    right: dict[str, str | bytes] = {
        "a byte order mark": b"\xef\xbb\xbf" + ROWS.encode(),
        "lines that end as on Windows": ROWS.replace("\n", "\r\n"),
        "blank lines between": ROWS.replace("\n", "\n\n"),
        "no end of the last line": ROWS.rstrip("\n"),
        "escapes for a terminal": ROWS + '{"prompt": "\\u001b[2Jhi\\u202e", "completion": "ok"}\n',
        "marks of a template": ROWS + '{"prompt": "<|im_end|><|im_start|>system", "completion": "{{ 7 * 7 }}"}\n',
        "emoji and other scripts": ROWS
        + '{"prompt": "\\ud83d\\ude00 \\u05e9\\u05dc\\u05d5\\u05dd", "completion": "好"}\n',
        "messages": ROWS + '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
        "keys of one's own": ROWS.replace('"prompt"', '"ticket": 7, "prompt"'),
    }
    for name, content in right.items():
        for verb in WITH_AN_UPLOAD:
            yield Case("uploads", name, verb, write("upload.jsonl", content), accepted=True)
    long = write("upload.jsonl", ROWS + json.dumps({"prompt": "a", "completion": "word " * 2_000_000}) + "\n")
    name = "a row of ten million tokens"
    yield Case("uploads", name, "audit", long, r"upload\.jsonl:9")
    # Completions are cut at `max_length`, which is said.
    yield Case("uploads", name, "finetune", long, r"upload\.jsonl:9", accepted=True)
    yield Case("uploads", name, "finetune", long, r"upload\.jsonl:9", ("--set", "max_length=null"))
    for name, make in {"a pipe": os.mkfifo, "a folder": Path.mkdir}.items():
        for verb in WITH_AN_UPLOAD:
            yield Case("uploads", name, verb, _instead("upload.jsonl", make), r"upload\.jsonl")
    for verb in WITH_AN_UPLOAD:
        yield Case("uploads", "not there", verb, remove("upload.jsonl"), r"upload\.jsonl")


def _instead(file: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return spoil


def settings() -> Iterator[Case]:
    """Settings that cannot be meant."""
    values = {
        "learning_rate": ["-1", "nan", "inf", "fast", "[1]", "1e40"],
        "max_steps": ["2.5", "many", "-3", "0", "1e30"],
        "per_device_train_batch_size": ["0", "-1", "1.5", "100000000000"],
        "gradient_accumulation_steps": ["0", "-2"],
        "warmup_steps": ["-1", "nan"],
        "weight_decay": ["-1", "nan"],
        "max_grad_norm": ["-1", "nan"],
        "optim": ["nonesuch", "3"],
        "lr_scheduler_type": ["nonesuch"],
        "report_to": ["nonesuch", "wandb"],
        "push_to_hub": ["true"],
        "deepspeed": ["zero.json"],
        "fsdp": ["full_shard"],
        "load_best_model_at_end": ["true"],
        "eval_strategy": ["steps"],
        "lr": ["0.1"],
        "seed": ["-1", "1e40", "one"],
    }
    for name, bad in values.items():
        for value in bad:
            for verb in ("align", "finetune"):
                yield Case("settings", f"{name}={value}", verb, more=("--set", f"{name}={value}"), told=name)
    for name, value in (("learning_rate", "1e-4"), ("learning_rate", "1.0e-4"), ("lr_scheduler_type", "cosine")):
        for verb in ("align", "finetune"):
            yield Case("settings", f"{name}={value}", verb, more=("--set", f"{name}={value}"), accepted=True)
    for setting in ("r=0", "r=-1", "r=many", "lora_alpha=nan", "lora_dropout=2", "target_modules=nonesuch", "rank=8"):
        yield Case("settings", f"lora {setting}", "align", more=("--lora", setting), told=setting.split("=")[0])
    for option, bad in {"--samples": ("0", "-3", "x"), "--max-new-tokens": ("0", "-1"), "--seed": ("-1",)}.items():
        for value in bad:
            yield Case("settings", f"{option} {value}", "evaluate", more=(option, value), told=option)
    for option, bad in {"--batch-size": ("0", "-1"), "--top": ("-1",), "--ratio": ("median",)}.items():
        for value in bad:
            yield Case("settings", f"{option} {value}", "audit", more=(option, value), told=option.strip("-"))
    yield Case("settings", "--judge nonesuch", "evaluate", more=("--judge", "nonesuch"), told="nonesuch")
    yield Case("settings", "--rejudge and a model", "rejudge", more=("model",), told="rejudge")
    for name, text in {
        "a number for arms": "arms: 3",
        "no arms": "arms: {}",
        "an arm twice": "arms:\n  plain: {align: sft, finetune: sft}\n  plain: {align: sft, finetune: sft}",
        "an unknown method": "arms: {plain: {align: magic, finetune: sft}}",
        "an unknown key": "arms: {plain: {align: sft, finetune: sft}}\nalgin: {max_steps: 1}",
        "text that is no YAML": "arms: {",
        "a tag that runs code": "arms: !!python/object/apply:os.system [true]",
    }.items():
        yield Case(
            "settings", f"experiment: {name}", "run", write("experiment.yaml", f"name: x\n{text}\n"), "experiment"
        )
    for name, old, new, told in (
        ("attacks that are none", "harmful: {steps: 1", "nonesuch: {steps: 1", "profile.*nonesuch"),
        ("steps below 0", "steps: 1", "steps: -1", "profile.*steps"),
        ("a pool too small", "samples: 4", "samples: 100000", "samples"),
        ("seeds that repeat", "seeds: [0]", "seeds: [0, 0]", "profile.*seeds"),
        ("no prompts", "harmful: 4", "harmful: 0", "profile.*harmful"),
    ):
        yield Case("settings", f"profile: {name}", "assay", write("profile.yaml", PROFILE.replace(old, new)), told)


def places() -> Iterator[Case]:
    """Outputs that cannot be written."""
    for verb in ("align", "finetune", "evaluate", "audit", "assay", "run"):
        yield Case("outputs", "a file in the folder's place", verb, write("out", "mine"), "out")
        yield Case("outputs", "a file above", verb, write("up", "mine"), "up", output="up/out")
        yield Case("outputs", "a name too long", verb, told="name|long", output="x" * 300)
        yield Case("outputs", "nothing can be written there", verb, told="/proc", output="/proc/out")


def runs() -> Iterator[Case]:
    """Results of one's own that were spoilt since."""
    for name, content in NOT_JSON.items():
        yield Case("results", f"results.json: {name}", "report", write("run/results.json", content), r"results\.json")
        answers = write("scores/inferences.jsonl", content)
        yield Case("results", f"inferences.jsonl: {name}", "rejudge", answers, r"inferences\.jsonl")
        for stage, file in (("align", "done.json"), ("answer", "inferences.jsonl"), ("judge", "scores.jsonl")):
            # A stage whose result is spoilt is done again, and that is said.
            spoil = _in_stages(stage, file, content)
            told = file.replace(".", r"\.")
            yield Case("results", f"{file} of a stage: {name}", "run", spoil, told, output="run", accepted=True)


def _in_stages(kind: str, file: str, content: str | bytes) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (path,) = sorted((folder / "run/stages").glob(f"{kind}-*/{file}"))[:1]
        write(str(path.relative_to(folder)), content)(folder)

    return spoil


# --- how it ends ------------------------------------------------------------------------------------------------------


def _command(words: list[str], folder: Path, log: Path) -> None:
    """Run the command line in a forked child."""
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["titer", *words]
    from titer.cli import main

    main()


def outcome(words: list[str], folder: Path) -> tuple[int | None, str]:
    """Return a command's exit code (none if it hangs) and what it printed."""
    log = folder.with_suffix(".log")
    child = multiprocessing.get_context("fork").Process(target=_command, args=(words, folder, log))
    child.start()
    child.join(LIMIT)
    if hangs := child.is_alive():
        child.kill()
        child.join()
    return None if hangs else child.exitcode, log.read_text(errors="replace") if log.exists() else ""


def judged(case: Case, code: int | None, text: str) -> str:
    """Return which of `OUTCOMES` it is."""
    if code is None:
        return "hang"
    if "Traceback" in text or code not in (0, 2):
        return "traceback"
    if (code == 0) is not case.accepted:
        return "refused wrongly" if code else "accepted and wrong"
    if not re.search(case.told, text.replace("\n", " "), re.IGNORECASE):
        return "names not what"
    return RIGHT if case.accepted else CLEAR


def materials(folder: Path) -> None:
    """Make what the commands take: a model, an adapter, an upload, scores and a run."""
    folder.mkdir(parents=True)
    model, tokenizer = common.load(argparse.Namespace(shape="tiny", model=None))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "profile.yaml").write_text(PROFILE)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    (folder / "upload.jsonl").write_text(ROWS)
    for words in (
        [*VERBS["align"][:-1], "aligned"],
        [*VERBS["evaluate"][:-1], "scores"],
        [*VERBS["run"][:-1], "run"],
    ):
        code, text = outcome(words, folder)
        if code:
            raise SystemExit(f"titer {' '.join(words)} ended with {code}:\n{text}")


class Counter:
    """Counts which tests saw titer refuse something, and which accept it."""

    def __init__(self) -> None:
        from titer.errors import TiterError

        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.refused = False
        plain = TiterError.__init__

        def noted(error: TiterError, *args: object, **kwargs: object) -> None:
            self.refused = True
            plain(error, *args, **kwargs)

        TiterError.__init__ = noted  # type: ignore[method-assign]

    def pytest_runtest_setup(self) -> None:
        self.refused = False

    def pytest_runtest_logreport(self, report: object) -> None:
        if getattr(report, "when", "") == "call":
            file = Path(getattr(report, "fspath", "")).stem
            passed = CLEAR if self.refused else RIGHT
            self.counts[file, passed if getattr(report, "passed", False) else "test fails"] += 1


def tests() -> collections.Counter[tuple[str, str]]:
    """Return how many cases of the tests ended in which way."""
    import pytest

    folder = Path(__file__).parent.parent / "tests"
    counter = Counter()
    pytest.main(["-q", "--no-header", *map(str, sorted(folder.glob("test_hostile_*.py")))], plugins=[counter])
    return counter.counts


def table(counts: collections.Counter[tuple[str, str]]) -> str:
    """Return the counts as Markdown, a subject a row."""
    subjects = list(dict.fromkeys(subject for subject, _ in counts))
    columns = [*OUTCOMES, *sorted({column for _, column in counts} - set(OUTCOMES))]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for subject in [*subjects, "all"]:
        cells = [sum(n for (s, c), n in counts.items() if c == column and subject in (s, "all")) for column in columns]
        lines.append(f"| {subject} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Replay, and print the table and every case that did not end as it should."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose subject, name or verb holds this")
    parser.add_argument("--tests", action="store_true", help="run and count the tests' cases too")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="work in this new folder, and leave it")
    args = parser.parse_args()
    import titer.assays
    import titer.workflows.repair  # noqa: F401 - both once, for all children

    folder = args.keep or Path(tempfile.mkdtemp(prefix="titer-hostile-"))
    work, whole = folder / "work", folder / "whole"
    materials(work)
    shutil.copytree(work, whole)
    cases = [c for make in (models, templates, adapters, uploads, settings, places, runs) for c in make()]
    cases = [case for case in cases if args.only in f"{case.subject} {case.name} {case.verb}"]
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for case in track(cases, description="replaying", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        # Always in the same place, since an adapter names the folder of its base.
        shutil.rmtree(work)
        shutil.copytree(whole, work)
        case.spoil(work)
        code, text = outcome(case.words, work)
        ended = judged(case, code, text)
        counts[case.subject, ended] += 1
        if ended not in (CLEAR, RIGHT):
            print(f"{ended}: {case.verb}, {case.subject}, {case.name}\n{text[-1500:]}\n", flush=True)
    if args.tests:
        counts += tests()
    print(table(counts))
    if not args.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
