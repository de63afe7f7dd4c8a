"""`titer evaluate`: harmful score, refusals, over-refusal and task accuracy of a model or adapter."""

from __future__ import annotations

from titer.cli.common import Json
from titer.cli.mirror import Call, mirror
from titer.text import say, to_json
from titer.workflows.common import Unfinished
from titer.workflows.evaluate import Evaluation, evaluate

NAME = "evaluate"
HELP = "Score a model or an adapter: harmful score, refusals, broken answers, over-refusal, task accuracy."
EXAMPLES = """
Examples:

`titer evaluate aligned/adapter --output scores` — writes inferences.jsonl, scores.jsonl, results.json

`titer evaluate my-model/ --task sst2 --data-dir data/ --output scores --json`

`titer evaluate tuned/adapter --phase finetuned --step 60 --poison-ratio 0.2 --output after` — label what was scored

`titer evaluate tuned/adapter --output scores --without-serving` — a serving control's adapter, as whoever holds it has it

`titer evaluate tuned/adapter --output scores --force` — replaces what is in the folder

`titer evaluate tuned/adapter --engine openai:http://localhost:8000 --output scores` — decoded by vLLM or SGLang

`titer evaluate --rejudge scores --judge offline` — judge the same answers again, generating nothing
"""


@mirror(evaluate, arguments=["model"])
def command(call: Call[Evaluation], as_json: Json = False) -> None:
    """Score a model."""
    try:
        _print(call(), as_json)
    except Unfinished as error:
        _print(error.result, as_json)
        raise


def _print(found: Evaluation, as_json: bool) -> None:
    """Print the results."""
    from titer.files import read_json
    from titer.screen import Screen, table

    if as_json:
        say(to_json(read_json(found.folder / "results.json")))
        return
    shown = table("metric", "value", "95 % interval", "n", "judge", title=found.model)
    for row in found.results:
        shown.add_row(row.metric, f"{row.value:.1f} %", f"{row.low:.1f} – {row.high:.1f}", str(row.n), row.judge)
    Screen().print(shown)
    for line in found.origin():
        say(line)
    say(f"Artefacts: {found.folder}")
