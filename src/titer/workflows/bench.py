"""Holds judges against people: what they say of answers that people have labelled, and how often they err."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from titer.errors import TiterError
from titer.workflows.common import Show, Table, Unfinished, as_names, as_path, command, workflow

if TYPE_CHECKING:
    from titer.data.labelled import LabelledAnswer
    from titer.judges.base import Judge, Label, Verdict
    from titer.judges.bench import Bench
    from titer.results import ScoreRow


@dataclass(frozen=True)
class BenchRun(Table):
    """What judges are worth; as a table a group of answers a row, for each judge.

    Attributes:
        folder: Where verdicts.jsonl and bench.json are.
        bench: What was found.
        about: Where that comes from.
    """

    folder: Path
    bench: Bench = field(repr=False)
    about: dict[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        """What bench.json holds."""
        return {"schema": "titer/bench/1", **self.bench.as_dict(), "provenance": self.about}

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of each judge on all answers and on every group of them."""
        return [
            {"judge": one.judge, **figures.as_dict()}
            for one in self.bench.judges
            for figures in (one.overall, *one.kinds, *one.models, *one.categories)
        ]


@workflow
def bench(
    answers: str | Sequence[str],
    *,
    judge: str | Sequence[str] = ("offline", "keywords"),
    output: str | Path = "bench",
    html: str | Path | None = None,
    markdown: str | Path | None = None,
    write_error_rates: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    show: Show | bool = False,
) -> BenchRun:
    """Hold judges against answers that people have labelled.

    Args:
        answers: Files of labelled answers, one JSON object a line; see docs/formats.md.
        judge: Who is measured: names of `titer judges list`, or import paths of one's own. May be given several times.
        output: Folder for the verdicts, which are asked for once, and bench.json.
        html: Also write a page to this file.
        markdown: Also write the tables to this file.
        write_error_rates: Put how often each judge errs into this file, to correct harmful scores by.
        seed: Seeds the bootstrap over prompts.
        force: Ask the judges again.
        show: Who is told how it goes: `True` for stderr, or a `titer.workflows.common.Show`; by default nobody.

    Raises:
        TiterError: For answers that cannot be read, and judges that there are not.
        Unfinished: When a judge failed on some answers; what there is has been written.
    """
    from titer import judges
    from titer.data.labelled import read_labelled
    from titer.files import check_output
    from titer.jobs.provenance import environment
    from titer.judges import bench as against_people
    from titer.judges import error_rates
    from titer.judges.offline import OfflineJudge
    from titer.report import bench_markdown, write_bench
    from titer.results.artefacts import write_atomically
    from titer.results.scoring import Answer, check_verdicts, judge_answers
    from titer.text import to_json

    chosen = [judges.get(name) for name in as_names(judge)]
    names = [one.name for one in chosen]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise TiterError(f"Judge `{twice[0]}` is asked twice.", "Name it once.")
    folder = as_path("output", output)
    check_output(folder, ["verdicts.jsonl", "bench.json"])
    places = {"html": html, "markdown": markdown, "write_error_rates": write_error_rates}
    files = {name: as_path(name, value) for name, value in places.items() if value is not None}
    for file in files.values():
        check_output(file.parent, [file.name])
    if "write_error_rates" in files and files["write_error_rates"].exists():
        error_rates.read_error_rates(files["write_error_rates"])
    paths = [Path(path) for path in as_names(answers)]
    labelled = [answer for path in paths for answer in read_labelled(path)]
    asked = {_id(one): Answer(_id(one), one.prompt, one.response) for one in labelled}
    if force:
        _forget(folder / "verdicts.jsonl", chosen)
    scores = judge_answers(folder / "verdicts.jsonl", list(asked.values()), chosen, keep_all=True)
    seen = {
        judge.name: sum(judge.has_seen(one.prompt, one.response) for one in labelled)
        for judge in chosen
        if isinstance(judge, OfflineJudge)
    }
    found = against_people.bench(labelled, _by_judge(labelled, scores, chosen), seed, seen)
    # Names without folders: a page is shown to others.
    sources = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}
    about = {**environment(), "command": command("workflows.bench.bench"), "answers": sources, "seed": seed}
    run = BenchRun(folder, found, about)
    write_atomically(folder / "bench.json", to_json(run.document).encode())
    if "html" in files:
        write_bench(files["html"], found, about)
    if "markdown" in files:
        write_atomically(files["markdown"], bench_markdown(found).encode())
    try:
        check_verdicts(scores)
    except TiterError as error:
        raise Unfinished(error, run) from error
    if "write_error_rates" in files:
        origin = {
            "measured_on": ", ".join(f"{name} (sha256 {digest}…)" for name, digest in sources.items()),
            "date": time.strftime("%Y-%m-%d"),
            "command": about["command"],
        }
        rates = {one.judge: against_people.error_rates(one, labelled, **origin) for one in found.judges}
        error_rates.write_error_rates(files["write_error_rates"], rates)
    return run


def _id(answer: LabelledAnswer) -> str:
    from titer.judges.base import answer_id

    return answer_id(answer.prompt, answer.response)


def _forget(path: Path, judges: Sequence[Judge]) -> None:
    """Take the verdicts of some judges out of a file."""
    from titer.results.artefacts import read_scores, write_scores

    if path.is_file():
        names = {one.name for one in judges}
        write_scores(path, [row for row in read_scores(path) if row.judge not in names])


def _by_judge(
    labelled: Sequence[LabelledAnswer], scores: Sequence[ScoreRow], judges: Sequence[Judge]
) -> dict[str, list[Verdict]]:
    """Each judge's verdicts in the order of the answers."""
    from titer.judges.base import Verdict

    given = {
        (row.judge, row.id): Verdict(cast("Label | None", row.label), row.score, row.raw, row.error) for row in scores
    }
    return {judge.name: [given[judge.name, _id(answer)] for answer in labelled] for judge in judges}
