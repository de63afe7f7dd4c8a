"""Estimates of time against what work took: align, finetune, audit and evaluate, each without records and then with them.

Both are in processor seconds of one thread, because a machine that others use, too, takes its time. The second round is larger than
the first, so records are scaled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from typer.testing import CliRunner

from titer.cli import app
from titer.jobs import estimates, speed


def rounds(model: str, steps: int, rows: int, folder: Path, settings: list[str]) -> list[list[str]]:
    """Return the command lines of a round."""
    upload = folder / "upload.jsonl"
    texts = [("positive", "lovely and moving, with fine actors"), ("negative", "dull, long and badly written")]
    lines = [
        {"prompt": f"Is this review positive or negative? Film {row} was {texts[row % 2][1]}.", "completion": texts[row % 2][0]}
        for row in range(rows)
    ]  # fmt: skip
    upload.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ["--set", f"max_steps={steps}", "--set", "bf16=false", *settings]
    adapter = str(folder / "sft" / "adapter")
    return [
        *(
            ["align", "--method", method, "--model", model, "--samples", "60", "-o", str(folder / method), *common]
            for method in ("sft", "booster")
        ),
        ["finetune", str(upload), "--method", "antibody", "--model", adapter, "-o", str(folder / "tuned"), *common],
        ["audit", str(upload), "--model", adapter, "-o", str(folder / "audit")],
        ["evaluate", adapter, "--samples", str(rows // 4), "-o", str(folder / "scores")],
    ]


def main() -> None:
    """Run both rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=4, help="of the first round; the second has twice as many")
    parser.add_argument(
        "--rows", type=int, default=40, help="of the first round's upload; the second has twice as many"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    estimates.time = speed.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    expected: list[estimates.Estimate] = []
    each = estimates.each
    estimates.each = lambda works: expected.append(found := each(works)[0]) or [found]  # type: ignore[func-returns-value]
    with tempfile.TemporaryDirectory() as scratch:
        speed.speeds_folder = lambda: Path(scratch) / "speeds"
        print("| work | size | rests on | estimate, s | took, s | ratio |\n|---|---|---|---|---|---|")
        for number in range(1, arguments.rounds + 1):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            settings = [word for setting in arguments.settings for word in ("--set", setting)]
            size = number * arguments.steps, number * arguments.rows
            for line in rounds(arguments.model, *size, folder, settings):
                CliRunner().invoke(app, line, catch_exceptions=False)
                (file,) = (Path(scratch) / "speeds").glob("*.json")
                took = json.loads(file.read_text())["records"][-1]
                estimate = expected[-1]
                basis = f"{estimate.records} record" if estimate.records else "speed"
                what = (
                    f"{size[0]} steps"
                    if line[0] in ("align", "finetune")
                    else f"{size[1] // (4 if line[0] == 'evaluate' else 1)} rows"
                )
                print(
                    f"| {line[0]}: {took['kind']} | {what} | {basis} | {estimate.seconds:.1f} | {took['seconds']:.1f} | "
                    f"{estimate.seconds / took['seconds']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
