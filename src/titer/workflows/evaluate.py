"""Scores a model or an adapter: harmful score, refusals, broken answers, over-refusal, task accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError, check_known
from titer.workflows.common import (
    Show,
    Table,
    Unfinished,
    as_path,
    given,
    listener,
    refuse_unused,
    refuse_unused_data_dir,
    refuse_what_is_there,
    spell,
    workflow,
)

if TYPE_CHECKING:
    from titer.data import Record
    from titer.infer.engines import Engine
    from titer.infer.serving import Serving
    from titer.judges.base import Judge
    from titer.results import Inference, Result, ScoreRow


@dataclass(frozen=True)
class Evaluation(Table):
    """What a model answered and how that was judged; as a table its results, a metric a row.

    Attributes:
        folder: Where the artefacts are: inferences.jsonl, scores.jsonl, results.json.
        model: What was scored.
        inferences: The answers.
        scores: The judge's verdicts on them.
        results: The figures, in percent with 95 % intervals.
        source: Where the answers are from, of those that `titer convert` took from another tool.
        serving: What the model was served with in a few words, where it was (a serving control or a served guard).
        routes: Of a served guard, on which prompts its router had the refusal adapter answer, in words.
        engine: Which engine answered; `None` for titer's own decoding in this process.
    """

    folder: Path
    model: str
    inferences: tuple[Inference, ...] = field(repr=False)
    scores: tuple[ScoreRow, ...] = field(repr=False)
    results: tuple[Result, ...]
    source: dict[str, Any] | None = field(default=None, repr=False)
    serving: str | None = None
    routes: str | None = None
    engine: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return the results."""
        return [dataclasses.asdict(result) for result in self.results]

    def __str__(self) -> str:
        found = (f"{row.metric} {row.value:.1f} % [{row.low:.1f}, {row.high:.1f}], n={row.n}" for row in self.results)
        return "\n".join([self.model, *found, *self.origin()])

    def origin(self) -> list[str]:
        """Return sentences that say where answers of another tool or engine are from, and what a model was served with."""
        from titer.results.engines import OTHERS

        served = f"A serving control: asked with {self.serving}, which whoever holds the adapter leaves off."
        if self.routes:
            served = (
                f"A served guard: {self.routes}. Asked with {self.serving}, which whoever holds the weights leaves off."
            )
        engine = [] if self.engine is None else [f"Answered by {self.engine}. {OTHERS}"]
        return ([served] if self.serving else []) + engine + self._elsewhere()

    def _elsewhere(self) -> list[str]:
        if self.source is None:
            return []
        unknown = ", ".join(self.source.get("unknown", ()))
        place = f"The answers are from {self.source.get('format')}, {self.source.get('file')}"
        return [f"{place}; not known: {unknown}." if unknown else f"{place}."]


@workflow
def evaluate(
    model: str | None = None,
    *,
    output: str | Path = "evaluation",
    harmful: str = "builtin:harmful",
    lookalikes: str = "builtin:lookalikes",
    task: str = "builtin:sentiment",
    samples: int = 100,
    max_new_tokens: int = 48,
    phase: str = "aligned",
    step: int = 0,
    poison_ratio: float = 0.0,
    without_serving: bool = False,
    engine: str | None = None,
    judge: str = "offline",
    rejudge: str | Path | None = None,
    error_rates: str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    show: Show | bool = False,
) -> Evaluation:
    """Score a model or an adapter, or judge answers again that are there.

    Args:
        model: A model or adapter folder, a hub id, the embedded model.
        output: Folder for the artefacts.
        harmful: Harmful requests: builtin:harmful, advbench, a file, a hub id.
        lookalikes: Harmless prompts that only look harmful.
        task: Task whose accuracy to measure, or none.
        samples: Most prompts of each set.
        max_new_tokens: Longest answer.
        phase: What the model is: aligned or finetuned.
        step: Fine-tuning steps behind it, for the results.
        poison_ratio: Of what it was fine-tuned on.
        without_serving: Leave off what an adapter is served with (serving.json beside it): ask it as whoever holds it does.
        engine: Who decodes: openai:URL of a vLLM or SGLang server that loads adapters; this process by default.
        judge: Who judges answers: a name of `titer judges list`, or the import path of one's own.
        rejudge: Judge this folder's answers again.
        error_rates: File with how often the judge errs (`titer judges bench`), to correct the harmful score by.
        data_dir: Folder with local copies of named datasets (sst2_train.jsonl, …).
        seed: Seeds data, initialisation and sampling.
        force: Replace what is there.
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Raises:
        TiterError: For arguments that cannot be meant or have no effect, and data or a model that cannot be loaded.
        Unfinished: When the judge failed on some answers; what there is has been written.
    """
    from titer import judges
    from titer.files import check_output
    from titer.infer.engines import PART, Engine
    from titer.jobs.provenance import environment
    from titer.judges.error_rates import check_own
    from titer.results import artefacts
    from titer.results.engines import engines_of
    from titer.results.routes import routes_of, told
    from titer.results.scoring import check_verdicts, error_rates_of, judge_into, summarise

    chosen = judges.get(judge)
    rates = None if error_rates is None else as_path("error_rates", error_rates)
    if rates is not None:
        check_own(rates, [chosen.name])
    folder = as_path("output", output) if rejudge is None else as_path("rejudge", rejudge)
    check_output(folder, ["inferences.jsonl", "scores.jsonl", "results.json", "report.html"])
    serving = None
    server = None if engine is None else Engine.read(engine)
    if rejudge is not None:
        unused = given().keys() - {"rejudge", "judge", "error_rates", "show"}
        refuse_unused(unused, f"with `{spell('rejudge')}`, which judges the answers that are there")
        inferences = artefacts.read_inferences(folder / "inferences.jsonl")
        if not inferences:
            raise TiterError(f"{folder / 'inferences.jsonl'} holds no answers.", "Score the model again.")
    elif model is None:
        raise TiterError(f"Name a model to score, or a folder with `{spell('rejudge')}`.")
    else:
        check_known([phase], artefacts.PHASES, "phase")
        refuse_unused_data_dir([harmful, lookalikes, task])
        refuse_what_is_there([folder / file for file in ("inferences.jsonl", "scores.jsonl", "results.json")], force)
        copies = None if data_dir is None else as_path("data_dir", data_dir)
        sets = _prompts(harmful, lookalikes, task, samples, max_new_tokens, copies, seed)
        group = {"arm": Path(model).name, "phase": phase, "step": step, "poison_ratio": poison_ratio, "seed": seed}
        serving = _serving(model, without_serving, show)
        inferences = _answers(model, sets, group, chosen, show, serving, server, folder / PART)
        artefacts.write_inferences(folder / "inferences.jsonl", inferences)
        (folder / PART).unlink(missing_ok=True)
    scores = judge_into(folder / "scores.jsonl", inferences, [chosen])
    results = summarise(inferences, scores, rates)
    if rejudge is not None and (folder / "results.json").is_file():
        _, about = artefacts.read_results(folder / "results.json")
    else:
        about = {"model": inferences[0].model, "weights": artefacts.weights_of(inferences), **environment()}
        engines = engines_of(inferences)
        if engines or rejudge is None:  # what another tool answered is judged again too
            about["engines"] = engines
        # Judged again for want of results, answers tell that they were served, and not with what.
        served = {
            row.arm: f"a system prompt of SHA-256 {hashed}…"
            for row in inferences
            if (hashed := row.generation.get("serving"))
        }
        for row in inferences:
            if (hashed := row.generation.get("router")) and row.arm not in served:
                served[row.arm] = f"a router of SHA-256 {hashed}…"
        routed = routes_of(inferences)
        if served:
            about["serving"] = {
                arm: {
                    "about": serving.about if serving else found,
                    **({"routed": True, "routes": routed[arm]} if arm in routed else {}),
                }
                for arm, found in served.items()
            }
    about = {key: value for key, value in about.items() if key != "error_rates"} | {"judge": chosen.name}
    if known := error_rates_of(scores, rates):
        about["error_rates"] = known
    artefacts.write_results(folder / "results.json", results, about)
    if (folder / "report.html").is_file():
        from titer.report import write_report

        write_report(folder)  # the page of a run shows the new verdicts
    asked = "; ".join(one["about"] for one in about.get("serving", {}).values())
    routes = "; ".join(told(one["routes"]) for one in about.get("serving", {}).values() if one.get("routes"))
    found = Evaluation(
        folder,
        inferences[0].model,
        tuple(inferences),
        tuple(scores),
        tuple(results),
        about.get("source"),
        asked or None,
        routes or None,
        next(iter(engines_of(inferences).values()), None),
    )
    try:
        check_verdicts(scores)
    except TiterError as error:
        raise Unfinished(error, found) from error
    return found


NO_TASK = "none"
"""The task of whoever wants no accuracy."""

Sets = Sequence[tuple[str, "Sequence[Record]", int]]
"""Names of sets with their prompts, and the most tokens of an answer."""


def _prompts(
    harmful: str, lookalikes: str, task: str, samples: int, max_new_tokens: int, data_dir: Path | None, seed: int
) -> Sets:
    """Return the evaluation pools."""
    from titer.data import load, split_pools
    from titer.data.pools import DataSettings, evaluation_pools
    from titer.results import artefacts, tasks

    name = task.removeprefix("builtin:")
    if task != NO_TASK:
        tasks.get(name)
    pools = evaluation_pools(DataSettings(harmful=harmful, lookalikes=lookalikes), seed, data_dir)
    sets = (
        (artefacts.HARMFUL, pools["harmful"][:samples], max_new_tokens),
        (artefacts.LOOKALIKE, pools["lookalikes"][:samples], max_new_tokens),
    )
    if task == NO_TASK:
        return sets
    tests = split_pools(load(task, split="test", data_dir=data_dir), {"test": 1.0}, seed)["test"]
    return (*sets, (artefacts.TASK_PREFIX + name, tests[:samples], tasks.get(name).max_new_tokens))


def _serving(model: str, without: bool, show: Show | bool) -> Serving | None:
    """Return what a model is served with, by the file beside its adapter, and say so; `without` leaves it off."""
    from titer.infer.serving import read_serving, serving_beside
    from titer.models import split_adapter

    _, adapter = split_adapter(model)
    serving = None if adapter is None else read_serving(adapter)
    if adapter is None or serving is None:
        refuse_unused(["without_serving"], f"on `{model}`, beside which there is no serving.json")
        return None
    if without:
        listener(show).remark(
            f"Asked without {serving.about} ({serving_beside(adapter)}): as whoever holds the adapter."
        )
        return None
    listener(show).remark(
        f"Asked with {serving.about} ({serving_beside(adapter)}); `{spell('without_serving')}` leaves it off."
    )
    return serving


def _answers(
    model: str,
    sets: Sets,
    group: dict[str, Any],
    judge: Judge,
    show: Show | bool,
    serving: Serving | None,
    engine: Engine | None,
    part: Path,
) -> list[Inference]:
    """Generate answers.

    Args:
        model: What is asked.
        sets: The prompts.
        group: What the results are about.
        judge: Who will judge them.
        show: Who is told.
        serving: What the model is served with.
        engine: Who decodes them; this process without one.
        part: Where answers of an engine are kept until all are there.
    """
    from titer.infer.routing import read_routing
    from titer.infer.serving import served
    from titer.jobs import answers
    from titer.jobs.estimates import recorded
    from titer.jobs.provenance import weights_digest
    from titer.jobs.work import Cost, Work, answering, by_limit, judging, routing
    from titer.models import split_adapter
    from titer.results import artefacts

    base, adapter = split_adapter(model)
    system = "" if serving is None else serving.system
    router = None
    if serving is not None and serving.router is not None and adapter is not None:
        router = read_routing(adapter, serving.router)  # before the model is loaded, for it may be damaged
    prompts = [(record, limit) for _, records, limit in sets for record in records]
    if engine is not None:
        if router is not None:
            raise TiterError(
                f"`{model}` is served with a router, which reads the model's hidden states, and an engine tells none.",
                f"Leave out `{spell('engine')}`, or the router (`{spell('without_serving')}`).",
            )
        from titer.jobs.engines import answer_at

        texts, name = answer_at(engine, base, adapter, prompts, system, part)
        return answers.as_inferences(sets, texts, group, model, weights_digest(base, adapter), system, engine=name)
    judged = sum(len(records) for name, records, _ in sets if not name.startswith(artefacts.TASK_PREFIX))
    asked = [(served(record, system), limit) for record, limit in prompts]
    more = Cost() if router is None else routing(base, [record for record, _ in asked])
    work = Work("answer", base, answering(base, by_limit(asked)) + more).after_loading
    listener(show).expect([work, judging(base, [judge], judged)])
    with recorded(work):
        if router is None or adapter is None:
            texts, routed = answers.answer(base, adapter, prompts, system), None
        else:
            texts, on = answers.routed_answers(base, adapter, prompts, router, system)
            routed = (router.digest, on)
    return answers.as_inferences(sets, texts, group, model, weights_digest(base, adapter), system, routed)
