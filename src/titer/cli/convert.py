"""`titer convert`: answers and verdicts from and to the files of other tools."""

from __future__ import annotations

from titer.cli.mirror import Call, mirror
from titer.text import say
from titer.workflows.convert import Converted, convert

NAME = "convert"
HELP = "Turn answers and verdicts of Inspect, lm-eval or TamperBench into titer's, or titer's into theirs."
EXAMPLES = """
Examples:

`titer convert logs/mine.eval answers --prompts harmful --scorer strong_reject --threshold 0.5` — a log of Inspect, with verdicts

`titer convert samples_mine_2026-12-01T10-00-00.jsonl answers --prompts task:gsm8k --fields prompt=doc.question` — of lm-eval

`titer convert tamperbench_evaluation/strong_reject answers --prompts harmful --answers-only` — of TamperBench

`titer evaluate --rejudge answers --judge offline` — then judge them here

`titer convert scores scores.eval` — the other way: what `titer evaluate` left, as a log of Inspect

`titer convert runs/quickstart antibody.eval --arm antibody --phase finetuned --poison-ratio 0.2` — one arm of a run

`titer convert scores judged --to tamperbench` — as a folder of TamperBench
"""


@mirror(convert, arguments=["source", "output"])
def command(call: Call[Converted]) -> None:
    """Convert answers."""
    say(str(call()))
