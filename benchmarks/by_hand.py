"""Draw answers of a run to be labelled blind, and hold judges against the labels: harmful scores raw, corrected and by hand.

`draw` takes as many answers to harmful prompts from every arm and checkpoint, shuffles them, and writes what may be seen: a number, the
request and the answer. Labels come back as JSON lines of `number` and `label`, by `labelled/GUIDELINES.md`, twice. `join` puts them
together with where the answers are from, as `titer judges bench` reads them; `compare` prints the agreement of the two passes and the
harmful scores.

Examples:

  python benchmarks/by_hand.py draw --run runs/quickstart --each 45 --output drawn
  python benchmarks/by_hand.py join --drawn drawn --labels first.jsonl second.jsonl --output benchmarks/labelled/quickstart.jsonl
  python benchmarks/by_hand.py compare --answers benchmarks/labelled/quickstart.jsonl --judges offline keywords
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from titer import judges
from titer.results.artefacts import HARMFUL, Inference, read_inferences
from titer.screen import table
from titer.stats.agreement import kappa
from titer.stats.intervals import Estimate, wilson
from titer.stats.misclassification import Counted, true_share

PASSES = ("label", "second")


def draw(run: Path, each: int, seed: int, output: Path) -> None:
    """Write `seen.jsonl`, which labellers get, and `whence.jsonl`, which they do not."""
    cells: dict[tuple[str, str, int], list[Inference]] = defaultdict(list)
    for file in sorted(run.glob("jobs/answer-*/inferences.jsonl")):
        for one in read_inferences(file):
            if one.set == HARMFUL:
                cells[one.arm, one.phase, one.step].append(one)
    chance = random.Random(seed)
    drawn = [one for cell in sorted(cells) for one in chance.sample(cells[cell], min(each, len(cells[cell])))]
    chance.shuffle(drawn)
    output.mkdir(parents=True, exist_ok=True)
    seen = [{"number": place, "prompt": one.prompt, "response": one.response} for place, one in enumerate(drawn)]
    whence = [
        {"number": place, "arm": one.arm, "phase": one.phase, "step": one.step} for place, one in enumerate(drawn)
    ]
    write_lines(output / "seen.jsonl", seen)
    write_lines(output / "whence.jsonl", whence)
    print(f"{len(drawn)} answers of {len(cells)} arms and checkpoints: {output / 'seen.jsonl'}")


def join(drawn: Path, labels: Sequence[Path], output: Path) -> None:
    """Put both passes beside the answers and where they are from."""
    passes = [{row["number"]: row["label"] for row in read_lines(file)} for file in labels]
    rows = []
    for seen, whence in zip(read_lines(drawn / "seen.jsonl"), read_lines(drawn / "whence.jsonl"), strict=True):
        given = {name: found[seen["number"]] for name, found in zip(PASSES, passes, strict=True)}
        arm = f"{whence['arm']}, {whence['phase']}" + (f" {whence['step']}" if whence["step"] else "")
        rows.append(
            {"prompt": seen["prompt"], "response": seen["response"], **given, "harmful_prompt": True, "model": arm}
        )
    write_lines(output, sorted(rows, key=lambda row: (row["model"], row["prompt"])))
    print(f"{len(rows)} labelled answers: {output}")


def compare(answers: Path, names: Sequence[str]) -> None:
    """Print the agreement of the passes, and harmful scores by arm: by hand, raw, and corrected by the judge's errors in *other* arms."""
    rows = read_lines(answers)
    first, second = ([row[name] for row in rows] for name in PASSES)
    same = sum(one == other for one, other in zip(first, second, strict=True))
    prompts = [row["prompt"] for row in rows]
    agreed = kappa(first, second, prompts)
    assert agreed is not None
    print(f"Two passes agree on {same} of {len(rows)}; κ = {agreed.value:.2f} [{agreed.low:.2f}–{agreed.high:.2f}]")
    print(Counter(zip(first, second, strict=True)).most_common())
    complied = np.array([[row[name] == "complies" for name in PASSES] for row in rows]).mean(1)
    arms = np.array([row["model"] for row in rows])
    heads = ["arm", "n", "by hand"]
    verdicts = {}
    for name in names:
        judge = judges.get(name)
        found = judge(prompts, [row["response"] for row in rows])
        verdicts[judge.name] = np.array([one.label for one in found])
        heads += [f"{judge.name} raw", "unsure", "corrected"]
    shown = table(*heads)
    for arm in sorted(set(arms)):
        here = arms == arm
        line = [arm, str(here.sum()), percent(complied[here].sum(), int(here.sum()))]
        for labels in verdicts.values():
            harmful = labels == "harmful"
            line += [percent(harmful[here].sum(), int(here.sum())), str((labels[here] == "unsure").sum())]
            # Sure labels of other arms: an arm must not be corrected by what is known of its own answers.
            yes, no = ~here & (complied == 1), ~here & (complied == 0)
            told = corrected(harmful[here], harmful[yes], harmful[no])
            line.append("–" if told is None else f"{100 * told.value:.0f} [{100 * told.low:.0f}–{100 * told.high:.0f}]")
        shown.add_row(*line)
    Console(width=170).print(shown)
    for name, labels in verdicts.items():
        harmful, refused = labels == "harmful", labels == "refused"
        declines = np.array([row["label"] == row["second"] == "refuses" for row in rows])
        print(
            f"{name}: complied found {percent(harmful[complied == 1].sum(), int((complied == 1).sum()))}, "
            f"others called harmful {percent(harmful[complied == 0].sum(), int((complied == 0).sum()))}, "
            f"refusals found {percent(refused[declines].sum(), int(declines.sum()))}, "
            f"called refusals that are {percent(declines[refused].sum(), int(refused.sum()))}"
        )


def corrected(reported: np.ndarray, found: np.ndarray, alarms: np.ndarray) -> Estimate | None:
    """Rogan–Gladen's estimate of what a judge's labels stand for; None where it cannot be told."""
    if not (len(found) and len(alarms)):
        return None
    return true_share(*(Counted(int(part.sum()), len(part)) for part in (reported, found, alarms))).estimate


def percent(count: float, n: int) -> str:
    """A share in percent with Wilson's interval."""
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} [{100 * low:.0f}–{100 * high:.0f}] of {n}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Draw, join or compare."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("draw")
    one.add_argument("--run", type=Path, required=True)
    one.add_argument("--each", type=int, default=45, help="answers of an arm and checkpoint")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--output", type=Path, required=True)
    one = verbs.add_parser("join")
    one.add_argument("--drawn", type=Path, required=True)
    one.add_argument("--labels", type=Path, nargs=2, required=True)
    one.add_argument("--output", type=Path, required=True)
    one = verbs.add_parser("compare")
    one.add_argument("--answers", type=Path, required=True)
    one.add_argument("--judges", nargs="+", default=["offline", "keywords"])
    args = vars(parser.parse_args())
    verb = args.pop("verb")
    if verb == "draw":
        draw(**args)
    elif verb == "join":
        join(**args)
    else:
        compare(args["answers"], args["judges"])


if __name__ == "__main__":
    main()
