"""`titer evaluate`: harmful score, refusals, over-refusal and task accuracy of a model or adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.common import (
    DataDir,
    Force,
    Harmful,
    Json,
    Lookalikes,
    Seed,
    Show,
    in_range,
    path,
    refuse_unused,
    refuse_unused_data_dir,
    refuse_what_is_there,
)  # fmt: skip
from titer.text import say, to_json

if TYPE_CHECKING:
    from titer.judges.base import Judge
    from titer.results.artefacts import Inference

NAME = "evaluate"
HELP = "Score a model or an adapter: harmful score, refusals, broken answers, over-refusal, task accuracy."
EXAMPLES = """
Examples:

`titer evaluate aligned/adapter --output scores` — writes inferences.jsonl, scores.jsonl, results.json

`titer evaluate my-model/ --task sst2 --data-dir data/ --output scores --json`

`titer evaluate tuned/adapter --phase finetuned --step 60 --poison-ratio 0.2 --output after` — label what was scored

`titer evaluate tuned/adapter --output scores --force` — replaces what is in the folder

`titer evaluate --rejudge scores --judge offline` — judge the same answers again, generating nothing
"""


def command(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A model or adapter folder, a hub id, the embedded model.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="PATH", help="Folder for the artefacts.")
    ] = Path("evaluation"),
    harmful: Harmful = "builtin:harmful",
    lookalikes: Lookalikes = "builtin:lookalikes",
    task: Annotated[str, typer.Option("--task", help="Task whose accuracy to measure.")] = "builtin:sentiment",
    samples: Annotated[int, typer.Option("--samples", help="Most prompts of each set.", callback=in_range)] = 100,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.", callback=in_range)] = 48,
    phase: Annotated[str, typer.Option("--phase", help="What the model is: aligned or finetuned.")] = "aligned",
    step: Annotated[
        int, typer.Option("--step", help="Fine-tuning steps behind it, for the results.", callback=in_range)
    ] = 0,
    poison_ratio: Annotated[
        float, typer.Option("--poison-ratio", help="Of what it was fine-tuned on.", callback=in_range)
    ] = 0.0,
    judge: Annotated[str, typer.Option("--judge", help="Who judges answers: offline or keywords.")] = "offline",
    rejudge: Annotated[
        Path | None, typer.Option("--rejudge", parser=path, metavar="PATH", help="Judge this folder's answers again.")
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score a model."""
    from titer import judges
    from titer.errors import TiterError, check_known
    from titer.files import check_output
    from titer.jobs.provenance import environment
    from titer.results import artefacts
    from titer.results.scoring import check_verdicts, judge_into, summarise
    from titer.screen import Screen, table

    chosen = judges.get(judge)
    output = rejudge or output
    check_output(output, ["inferences.jsonl", "scores.jsonl", "results.json", "report.html"])
    if rejudge is not None:
        used = ("context", "rejudge", "judge", "as_json")
        unused = [str(option.name) for option in context.command.params if option.name not in used]
        refuse_unused(context, unused, "with `--rejudge`, which judges the answers that are there")
        inferences = artefacts.read_inferences(output / "inferences.jsonl")
        if not inferences:
            raise TiterError(f"{output / 'inferences.jsonl'} holds no answers.", "Score the model again.")
    elif model is None:
        raise TiterError("Name a model to score, or a folder with `--rejudge`.")
    else:
        check_known([phase], artefacts.PHASES, "phase")
        refuse_unused_data_dir(context, [harmful, lookalikes, task])
        refuse_what_is_there([output / file for file in ("inferences.jsonl", "scores.jsonl", "results.json")], force)
        group = {"arm": Path(model).name, "phase": phase, "step": step, "poison_ratio": poison_ratio, "seed": seed}
        inferences = _answers(model, harmful, lookalikes, task, samples, max_new_tokens, data_dir, group, chosen)
        artefacts.write_inferences(output / "inferences.jsonl", inferences)
    scores = judge_into(output / "scores.jsonl", inferences, [chosen])
    results = summarise(inferences, scores)
    if rejudge is not None and (output / "results.json").is_file():
        _, about = artefacts.read_results(output / "results.json")
    else:
        about = {"model": inferences[0].model, "weights": artefacts.weights_of(inferences), **environment()}
    artefacts.write_results(output / "results.json", results, {**about, "judge": chosen.name})
    if (output / "report.html").is_file():
        from titer.report import write_report

        write_report(output)  # the page of a run shows the new verdicts
    if as_json:
        say(to_json(json.loads((output / "results.json").read_text(encoding="utf-8"))))
    else:
        shown = table("metric", "value", "95 % interval", "n", "judge", title=str(inferences[0].model))
        for row in results:
            shown.add_row(row.metric, f"{row.value:.1f} %", f"{row.low:.1f} – {row.high:.1f}", str(row.n), row.judge)
        Screen().print(shown)
        say(f"Artefacts: {output}")
    check_verdicts(scores)


def _answers(
    model: str, harmful: str, lookalikes: str, task: str, samples: int, max_new_tokens: int, data_dir: Path | None,
    group: dict[str, Any], judge: Judge,
) -> list[Inference]:  # fmt: skip
    """Generate answers to the evaluation pools; `group` says what the results are about, `judge` who will judge them."""
    from titer.data import load, split_pools
    from titer.data.pools import DataSettings, evaluation_pools
    from titer.jobs import answers
    from titer.jobs.estimates import Work, answering, by_limit, judging, recorded
    from titer.jobs.provenance import weights_digest
    from titer.models import split_adapter
    from titer.results import artefacts, tasks

    name = task.removeprefix("builtin:")
    tasks.get(name)
    pools = evaluation_pools(DataSettings(harmful=harmful, lookalikes=lookalikes), group["seed"], data_dir)
    tests = split_pools(load(task, split="test", data_dir=data_dir), {"test": 1.0}, group["seed"])["test"]
    sets = (
        (artefacts.HARMFUL, pools["harmful"][:samples], max_new_tokens),
        (artefacts.LOOKALIKE, pools["lookalikes"][:samples], max_new_tokens),
        (artefacts.TASK_PREFIX + name, tests[:samples], tasks.get(name).max_new_tokens),
    )
    base, adapter = split_adapter(model)
    prompts = [(record, limit) for _, records, limit in sets for record in records]
    judged = sum(len(records) for name, records, _ in sets if name in (artefacts.HARMFUL, artefacts.LOOKALIKE))
    work = Work("answer", base, answering(base, by_limit(prompts))).after_loading
    Show().expect([work, judging(base, [judge], judged)])
    with recorded(work):
        texts = answers.answer(base, adapter, prompts)
    return answers.as_inferences(sets, texts, group, model, weights_digest(base, adapter))
