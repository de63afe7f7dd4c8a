"""Show that two checkouts of titer give the same figures on a tiny random model.

Every align and fine-tune method that both have, an experiment (sft, booster, antibody and gate; 2 seeds, 2 poison ratios)
and an assay are run from each checkout, by the same commands, in folders of the same name and in one thread. Then all
that they leave is compared: adapters tensor by tensor, answers, verdicts, results, weights of rows, losses, what was
measured under attack, and the scorecard. Left out are provenance, keys, times and the layout of run folders: a job is
known by its name. Exit code 1 where anything differs, 2 where a command fails.

Examples:

  python benchmarks/same_figures.py ../before .                        all of it, a few minutes
  python benchmarks/same_figures.py ../before . --only booster assay   commands whose name holds a word
  python benchmarks/same_figures.py ../before . --folder compared --json same.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import common
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

TRAINING = {"max_steps": 8, "per_device_train_batch_size": 4, "bf16": False, "learning_rate": 3e-3}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
EXPERIMENT = {
    "name": "compared",
    "model": "model",
    "seeds": [0, 1],
    "lora": LORA,
    "align": {"samples": 16, "training": TRAINING},
    "finetune": {"samples": 16, "poison_ratios": [0.0, 0.25], "checkpoints": [4], "training": TRAINING},
    "evaluate": {
        "harmful": 6, "lookalikes": 4, "task": 6, "max_new_tokens": 12, "task_max_new_tokens": 4, "weights": 8,
    },
    "arms": {
        "sft": {"align": "sft", "finetune": "sft"},
        "booster": {"align": "booster", "finetune": "sft"},
        "antibody": {"align": "antibody", "finetune": "antibody"},
        "gate": {"align": "sft", "finetune": "gate"},
    },
}  # fmt: skip
PROFILE = {
    "name": "compared",
    "description": "a comparison of two checkouts, not a measurement",
    "seeds": [0, 1],
    "data": {"held_out_categories": ["fraud", "hate"]},
    "attacks": {
        "harmful": {"steps": 8, "batch_size": 2, "samples": 16},
        "cross_domain": {"steps": 4, "batch_size": 2, "samples": 8},
        "poisoned_task": {"steps": 4, "batch_size": 3, "samples": 10},
        "benign_task": {"steps": 4, "batch_size": 3, "samples": 10},
        "openings": {"warm_up_steps": 1, "steps": 2, "batch_size": 2, "samples": 6},
        "muon": {"steps": 2, "batch_size": 2, "samples": 6},
        "full_parameter": {"steps": 2, "batch_size": 2, "samples": 6},
        "ablation": {"depths": [0.5], "samples": 8},
    },
    "harmful": 6, "lookalikes": 4, "task": 6, "reference_task": 6, "general": 12, "utility": 4,
    "max_new_tokens": 12, "task_max_new_tokens": 4, "checkpoints": 2, "fleet": 3, "accuracy_margin": 0.4,
}  # fmt: skip

STAGES = ("align", "finetune")
ROWS = 16
"""Rows of the upload, a quarter of them harmful."""

KINDS = {
    "adapter_model.safetensors": "adapter tensors",
    "inferences.jsonl": "answers",
    "scores.jsonl": "verdicts",
    "results.json": "results",
    "weights.jsonl": "row weights",
    "sample_weights.jsonl": "row weights in training",
    "log_ratios.json": "log ratios",
    "log.jsonl": "steps of logs",
    "attacker.json": "figures under attack",
    "scorecard.json": "figures of the scorecard",
}
"""File → what is counted in it."""

GATHERED = ("inferences.jsonl", "scores.jsonl")
"""Files that an output has at its top where it gathers them from its jobs, whose own are then not counted again."""

NOT_FIGURES = {
    "inferences.jsonl": {"model"},  # names the folder of a job, and so its key
    "results.json": {"schema", "provenance"},
    "scorecard.json": {"schema", "provenance"},
}
"""File → keys at the top of its documents that may differ."""

TIMES = {"seconds"}

SHOWN = 5
"""How many of the entries of a line that differ are named; `--json` names all."""


class CannotCompare(Exception):
    """A command failed, or is not that of the checkout that it should be of."""


# -- running ----------------------------------------------------------------------------------------------------------


def run(source: Path, folder: Path, *words: str) -> str:
    """Run a `titer` command of a checkout in a folder, in one thread and away from the user's caches.

    Returns:
        What it printed to stdout.

    Raises:
        CannotCompare: If it fails.
    """
    package = source / "src"
    # The environment may have another checkout installed, which must not stand in for this one.
    start = "import sys, titer; sys.exit(titer.__file__) if not titer.__file__.startswith(sys.argv.pop(1)) else None; "
    done = subprocess.run(
        [sys.executable, "-c", start + "from titer.cli import main; main()", f"{package}{os.sep}", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(package),
            "OMP_NUM_THREADS": "1",
            # PEFT writes its set of target modules in the order of their hashes, and answers name the hash of that file.
            "PYTHONHASHSEED": "0",
            "TITER_CACHE": str(folder.parent / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    if done.returncode:
        said = (done.stderr or done.stdout)[-2000:]
        raise CannotCompare(f"`titer {' '.join(words)}` of {source} ended with {done.returncode}:\n{said}")
    return done.stdout


def methods(source: Path, folder: Path) -> list[str]:
    """Return the methods of a checkout, such as `align booster`."""
    listed = json.loads(run(source, folder, "methods", "list", "--json"))
    return [f"{method['stage']} {method['name']}" for method in listed]


def commands(shared: Sequence[str]) -> dict[str, list[str]]:
    """Return the commands by name, in their order; the first makes the adapter that others begin with."""
    aligned = "out/align sft/adapter"
    training = [word for name, value in TRAINING.items() for word in ("--set", f"{name}={value}")]
    lora = ["--lora", f"r={LORA['r']}", "--lora", "target_modules=[q_proj,v_proj]"]
    found = {}
    for name in sorted(shared, key=lambda name: (STAGES.index(name.split()[0]), name != "align sft")):
        stage, method = name.split()
        if stage == "align":
            words = ["align", "--model", "model", "--samples", "16", *lora]
        else:
            words = ["finetune", "upload.jsonl", "--model", aligned]
        found[name] = [*words, "--method", method, *training, "--output", f"out/{name}"]
    found["run"] = ["run", "experiment.yaml", "--output", "out/run"]
    assay = ["assay", aligned, "--against", "model", "--profile", "profile.yaml", "--name", "compared"]
    found["assay"] = [*assay, "--output", "out/assay"]
    return found


def materials(folder: Path) -> None:
    """Make what the commands read: a model, an upload, an experiment and a profile."""
    from titer.data.builtin import harmful, sentiment

    folder.mkdir(parents=True)
    model, tokenizer = common.load(argparse.Namespace(shape="tiny", model=None))
    config = model.config
    # Small weights and one matrix for both ends say nothing but the end of the turn; these say something else each time.
    config.initializer_range, config.tie_word_embeddings = 0.3, False
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    few = ROWS // 4
    rows = [(row.prompt, row.answer) for row in sentiment("train")[: ROWS - few]]
    rows += [(row.prompt, row.answer) for row in harmful()[:few]]
    lines = [json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows]
    (folder / "upload.jsonl").write_text("".join(lines))
    (folder / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
    (folder / "profile.yaml").write_text(json.dumps(PROFILE))


# -- reading ----------------------------------------------------------------------------------------------------------

Entries = dict[str, dict[str, Any]]
"""What is compared → where it stands → a tensor, or plain data."""


def read(folder: Path) -> tuple[Entries, set[str]]:
    """Return all entries of a command's output, and the names of the files that were not read."""
    found: Entries = {}
    unread = set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        kind = "figures under attack" if path.match("step-*.json") else KINDS.get(path.name)
        if kind is None or (path.name in GATHERED and path.parent != folder and (folder / path.name).exists()):
            unread.add("inputs/" if path.parent == folder / "inputs" else path.name)
            continue
        where = place(path, folder)
        held = found.setdefault(kind, {})
        if path.suffix == ".safetensors":
            held.update({f"{where}: {name}": tensor for name, tensor in load_file(path).items()})
            found.setdefault("adapter files", {})[where] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text().splitlines(), 1):
                held[f"{where}:{number}"] = _document(path.name, line)
        elif path.name == "results.json":
            for number, row in enumerate(_document(path.name, path.read_text())["results"]):
                held[f"{where}: results.{number}"] = row
        else:
            held.update({f"{where}: {name}": value for name, value in leaves(_document(path.name, path.read_text()))})
    return found, unread


def place(path: Path, folder: Path) -> str:
    """Return where a file stands, with a job's name in the place of its folder.

    Jobs lie in `jobs/KIND-KEY` and lay in `stages/KIND-KEY`; their names are those of what they do.
    """
    parts = list(path.relative_to(folder).parts)
    if parts[0] in ("jobs", "stages"):
        name = json.loads((folder / parts[0] / parts[1] / "done.json").read_text())["name"]
        parts[:2] = [f"{parts[1].rpartition('-')[0]} [{name}]"]
    return "/".join(parts)


def _document(name: str, text: str) -> Any:
    document = json.loads(text)
    if not isinstance(document, dict):
        return document
    return {key: value for key, value in document.items() if key not in NOT_FIGURES.get(name, ())}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each number and text in plain data with its name, such as `attackers.defended.0.seed`; no times."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in TIMES:
                yield from leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


# -- comparing --------------------------------------------------------------------------------------------------------


@dataclass
class Compared:
    """One line of the table.

    Attributes:
        command: Name of the command.
        what: What is compared.
        count: Entries that either checkout left.
        identical: Those that are the same to the byte (tensors), or as they are written (plain data).
        largest: Largest absolute difference of two numbers that stand in the same place.
        differing: Where the others stand.
    """

    command: str
    what: str
    count: int = 0
    identical: int = 0
    largest: float = 0.0
    differing: list[str] = field(default_factory=list)


def compare(command: str, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Compared:
    """Compare entries that stand in the same place; one that only one side has differs."""
    line = Compared(command, what)
    for where in {**old, **new}:
        line.count += 1
        if where not in old or where not in new:
            line.differing.append(f"{where} (only {'old' if where in old else 'new'})")
            continue
        left, right = old[where], new[where]
        line.largest = max(line.largest, distance(left, right))
        if same(left, right):
            line.identical += 1
        else:
            line.differing.append(where)
    return line


def same(left: Any, right: Any) -> bool:
    """Say whether two entries are the same to the byte, or as they are written."""
    if isinstance(left, Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape
        return alike and torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (left, right)))
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def distance(left: Any, right: Any) -> float:
    """Return the largest difference of two numbers in the same place; infinite where one of them is no finite number."""
    if isinstance(left, Tensor):
        if left.shape != right.shape:
            return math.inf
        if same(left, right) or not left.numel():
            return 0.0
        far = (left.double() - right.double()).abs().max().item()
        return far if math.isfinite(far) else math.inf
    numbers = [{name: value for name, value in leaves(side) if _is_number(value)} for side in (left, right)]
    far = 0.0
    for name in numbers[0].keys() & numbers[1].keys():
        one, other = numbers[0][name], numbers[1][name]
        if one != other and not (math.isnan(one) and math.isnan(other)):
            gap = abs(one - other)
            far = max(far, gap if math.isfinite(gap) else math.inf)
    return far


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- the table --------------------------------------------------------------------------------------------------------


def table(lines: Sequence[Compared]) -> str:
    """Return the lines as Markdown."""
    rows = ["| command | what | entries | identical | largest difference |", "|---|---|---|---|---|"]
    for line in lines:
        rows.append(f"| {line.command} | {line.what} | {line.count} | {line.identical} | {line.largest:.3g} |")
    return "\n".join(rows)


def totals(lines: Sequence[Compared]) -> list[Compared]:
    """Return one line for each thing that is compared, over all commands."""
    found: dict[str, Compared] = {}
    for line in lines:
        total = found.setdefault(line.what, Compared("all", line.what))
        total.count += line.count
        total.identical += line.identical
        total.largest = max(total.largest, line.largest)
    return list(found.values())


def commit(source: Path) -> str:
    """Return the commit of a checkout, with `+` when its source was changed, or its folder where it is none."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    found = git("rev-parse", "--short=12", "HEAD")
    return found + ("+" if git("status", "--porcelain", "--", "src") else "") if found else str(source)


def compared(
    sources: Sequence[Path], folder: Path, wanted: Callable[[str], bool], say: Callable[[str], None]
) -> tuple[list[Compared], list[str]]:
    """Run the wanted commands from both checkouts and compare what they leave.

    Args:
        sources: The two checkouts, the old one first.
        folder: A new one, to work in.
        wanted: Says of a command's name whether it is to be run.
        say: Is told how far it is.

    Returns:
        The lines of the table, and in words what was left out of it.

    Raises:
        CannotCompare: If a command fails.
    """
    work = folder / "work"
    materials(folder / "stock")
    old, new = (methods(source, folder) for source in sources)
    shared = [name for name in old if name in new and name.split()[0] in STAGES]
    left_out = [
        f"{name}: {'both have it, but only what trains is run' if name in old and name in new else f'only {side} has it'}"
        for side, here in (("old", old), ("new", [name for name in new if name not in old]))
        for name in here
        if name not in shared
    ]
    every = commands(shared)
    names = [name for name in every if wanted(name)]
    if not names:
        raise CannotCompare(f"no command is called so; there are {', '.join(every)}")
    # Fine-tuning and the assay begin with its adapter.
    begun = [*([] if "align sft" in names or set(names) <= {"run"} else ["align sft"]), *names]
    for side, source in zip(("old", "new"), sources, strict=True):
        # In a folder of the same name, since adapters and scorecards name where their model lies.
        shutil.copytree(folder / "stock", work)
        for number, name in enumerate(begun, 1):
            say(f"{side}: {name} ({number} of {len(begun)})")
            run(source, work, *every[name])
        work.rename(folder / side)
    lines, unread = [], set()
    for name in names:
        (before, one), (after, other) = (read(folder / side / "out" / name) for side in ("old", "new"))
        lines += [compare(name, what, before.get(what, {}), after.get(what, {})) for what in {**before, **after}]
        unread |= one | other
    left_out.append(f"files that hold no figures, or such as are compared elsewhere: {', '.join(sorted(unread))}")
    return lines, left_out


def main() -> None:
    """Run, compare, and print the table and all that differs."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD_SOURCE", help="a checkout: the folder that holds src/titer")
    parser.add_argument("new", type=Path, metavar="NEW_SOURCE", help="the checkout that should give the same")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="commands whose name holds one of these"
    )
    parser.add_argument("--folder", type=Path, help="work in this new folder, and leave it")
    parser.add_argument("--json", metavar="FILE", help="also write the result to FILE")
    args = parser.parse_args()
    sources = [args.old.resolve(), args.new.resolve()]
    for source in sources:
        if not (source / "src" / "titer").is_dir():
            parser.error(f"{source} holds no src/titer")
    if args.folder and args.folder.exists():
        parser.error(f"--folder: {args.folder} is there already")
    common.quiet()
    folder = args.folder.absolute() if args.folder else Path(tempfile.mkdtemp(prefix="titer-same-")).resolve()

    def wanted(name: str) -> bool:
        return any(word in name for word in args.only)

    try:
        lines, left_out = compared(sources, folder, wanted, lambda text: print(text, file=sys.stderr, flush=True))
    except CannotCompare as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if not args.folder:
            shutil.rmtree(folder)
    commits = [commit(source) for source in sources]
    print(f"old {commits[0]}, new {commits[1]}\n\n{table([*lines, *totals(lines)])}\n")
    print("\n".join(f"left out: {what}" for what in left_out))
    for line in lines:
        shown = line.differing[:SHOWN]
        for where in [*shown, *([f"and {len(line.differing) - SHOWN} more"] if len(line.differing) > SHOWN else [])]:
            print(f"differs: {line.command}, {line.what}: {where}")
    if args.json:
        result = {"benchmark": "same_figures", "commits": commits, "left_out": left_out}
        text = json.dumps({**result, "lines": [asdict(line) for line in lines]}, indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if any(line.differing for line in lines) else 0)


if __name__ == "__main__":
    main()
