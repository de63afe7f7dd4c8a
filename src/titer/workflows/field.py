"""A field of defences, cell by cell: what is done, what is missing, in which order, and the pages of it.

A cell is planned as the experiment that it stands for (`titer.workflows.field_file`), in one run folder for all of them, so that
cells share their alignments and trainings. What it leaves goes into a small file (`titer.results.cells`), which is all that the
pages need: where such files are, the work goes on from them, on any machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.files import read_json
from titer.progress import duration
from titer.results.cells import CellFile, read_cells
from titer.workflows.experiment_file import Step
from titer.workflows.field_cells import failures
from titer.workflows.field_costs import Seconds
from titer.workflows.field_file import (
    Field,
    Form,
    Spot,
    experiment_of,
    protocol_digest,
    protocol_of,
    spots,
    trials,
    whole_spots,
)
from titer.workflows.field_theirs import Theirs, claims, what_differs

if TYPE_CHECKING:
    from titer.report.field_view import Paper


@dataclass
class Standing:
    """How far a field is.

    Attributes:
        asked: The field.
        cells: Files that are there and fit the protocol, by the names of their cells.
        stale: Names of files whose protocol is another.
        missing: Cells that are yet to be done.
        failed: Why cells failed on this machine, by name.
    """

    asked: Field
    cells: dict[str, CellFile]
    stale: list[str]
    missing: list[Spot]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def every(self) -> list[Spot]:
        """All cells that there are to name: of the table, of trials, at the rates that were chosen."""
        return [*spots(self.asked), *whole_spots(self.asked), *trials(self.asked), *_tuned(self.asked, self.cells)]

    def groups(self, wanted: Sequence[Spot]) -> dict[tuple[str, float, int], tuple[int, list[Spot]]]:
        """Return how many cells are done, and which of some are missing, by form, share of harmful rows and seed."""
        groups: dict[tuple[str, float, int], tuple[int, list[Spot]]] = {}
        for spot in [*spots(self.asked), *wanted]:
            key = (spot.form, spot.poison_ratio, spot.seed)
            done = sum((one.form, one.poison_ratio, one.seed) == key for one in self.cells.values())
            groups[key] = done, [one for one in wanted if (one.form, one.poison_ratio, one.seed) == key]
        return groups

    def as_dict(self, wanted: Sequence[Spot]) -> dict[str, Any]:
        """For programs: what is done, and how long what is missing takes."""
        seconds = self.expected(wanted)
        missing = [{"cell": spot.name, "seconds": about} for spot, about in zip(wanted, seconds, strict=True)]
        return {
            "field": self.asked.name,
            "done": sorted(self.cells),
            "stale": self.stale,
            "missing": missing,
            "failed": self.failed,
        }

    def expected(self, wanted: Sequence[Spot]) -> list[float | None]:
        """Return how long cells will take in seconds, by the cells that are done; `None` where none tells."""
        return Seconds(self.cells.values()).of(self.asked, wanted)


def standing(found: Field, cells: Path, run_folder: Path) -> Standing:
    """Return how far a field is, by the files in the folder of its cells; nothing is loaded but these.

    Raises:
        TiterError: Naming file and key, for the file of a cell that is none.
    """
    there = read_cells(cells)
    known = {spot.name: spot for spot in (*spots(found), *whole_spots(found), *trials(found))}
    fits = {
        name: cell
        for name, cell in there.items()
        if name in known and cell.digest == protocol_digest(found, known[name])
    }
    tuned = [spot for spot in _tuned(found, fits) if spot.name not in known]
    known |= {spot.name: spot for spot in tuned}
    for spot in tuned:
        if spot.name in there and there[spot.name].digest == protocol_digest(found, spot):
            fits[spot.name] = there[spot.name]
    failed = {
        name: str(why) for name, why in failures(run_folder, found.name).items() if name in known and name not in fits
    }
    missing = [spot for name, spot in known.items() if name not in fits]
    return Standing(found, fits, sorted(there.keys() - fits.keys()), missing, failed)


def best_rates(found: Field, cells: Mapping[str, CellFile]) -> dict[str, float]:
    """Return the learning rate of each arm all of whose trials are done: where accuracy less harmful score is greatest.

    Of equal ones it is the rate nearest to the shared one, and of these the smaller.
    """
    shared = float(found.finetune.training.get("learning_rate", 0.0)) or 1.0
    by_arm: dict[str, list[tuple[float, CellFile | None]]] = {}
    for spot in trials(found):
        assert spot.learning_rate is not None
        by_arm.setdefault(spot.arm, []).append((spot.learning_rate, cells.get(spot.name)))
    rates = {}
    for arm, tried in by_arm.items():
        scored = [(gain(cell), -abs(rate / shared - 1), -rate) for rate, cell in tried if cell is not None]
        if len(scored) == len(tried):
            rates[arm] = -max(scored)[2]
    return rates


def gain(cell: CellFile) -> float:
    """Return what a trial is judged by: accuracy less harmful score, in percent."""
    accuracy, harmful = cell.figure("finetune_accuracy"), cell.figure("harmful_score")
    return (accuracy.value if accuracy else 0.0) - (harmful.value if harmful else 100.0)


def _tuned(found: Field, cells: Mapping[str, CellFile]) -> list[Spot]:
    """Return the cells at the rates that were chosen, where these are not the shared one."""
    rates = best_rates(found, cells)
    shared = found.finetune.training.get("learning_rate")
    return [
        Spot(spot.form, spot.arm, spot.poison_ratio, spot.seed, rates[spot.arm])
        for spot in spots(found)
        if spot.arm in rates and rates[spot.arm] != shared
    ]


def in_order(state: Standing, trials: bool = False, retry: bool = False) -> list[Spot]:
    """Return the missing cells, cheapest first within a seed, a share of harmful rows and a form.

    Args:
        state: How far the field is.
        trials: Trials of learning rates too, which come last with what they choose.
        retry: Cells that failed on this machine too.
    """
    missing = [spot for spot in state.missing if trials or not spot.validation]
    missing = [spot for spot in missing if retry or spot.name not in state.failed]
    expected = dict(zip((spot.name for spot in missing), state.expected(missing), strict=True))
    ratios, forms, seeds = state.asked.finetune.poison_ratios, list(state.asked.forms), state.asked.seeds

    def rank(spot: Spot) -> tuple[Any, ...]:
        late = 2 if spot.validation or spot.learning_rate is not None else int(spot.whole)
        places = [*seeds, spot.seed].index(spot.seed), [*ratios, spot.poison_ratio].index(spot.poison_ratio)
        return late, *places, forms.index(spot.form), expected[spot.name] or 0.0

    return sorted(missing, key=rank)


def total(state: Standing, wanted: Sequence[Spot]) -> str:
    """Return how long cells will take, in words; those of which nothing tells as the others do in the mean."""
    known = [about for about in state.expected(wanted) if about is not None]
    if not known:
        return "not known yet" if wanted else ""
    return f"about {duration(sum(known) * len(wanted) / len(known))}"


def refuse_other_field(folder: Path, name: str) -> None:
    """Raise where a folder of cells is another field's."""
    for file in sorted(folder.glob("*.json"))[:1]:
        other = read_json(file).get("field")
        if other != name:
            raise TiterError(f"{file} is of the field `{other}`, and not of `{name}`.", "Name another `--output`.")


# -- the pages --------------------------------------------------------------------------------------------------------


def write_pages(state: Standing, folder: Path, again: str, published: Field | None = None) -> Path:
    """Write what is done into `folder/index.html` and `folder/README.md`, and return the page.

    Args:
        state: What is done.
        folder: Where the pages go.
        again: The command that goes on with it.
        published: The field with the settings of the paper whose table it is, where it is one.
    """
    from titer.report.field_page import write_field
    from titer.report.field_view import Claim, FieldView

    asked, every = state.asked, trials(state.asked)
    shared = asked.finetune.training.get("learning_rate")
    most = max(asked.finetune.poison_ratios)
    claimed = [
        Claim(order.lower, order.higher, order.source, form, most) for order in asked.published for form in asked.forms
    ]
    theirs = claims(asked.theirs) if asked.theirs else []
    view = FieldView(
        name=asked.name,
        description=asked.description,
        cells=[cell for cell in state.cells.values() if not cell.validation],
        arms=list(asked.arms),
        forms={name: form.task for name, form in asked.forms.items()},
        poison_ratios=asked.finetune.poison_ratios,
        asked=len(spots(asked)) + len(whole_spots(asked)),
        trials=(sum(spot.name in state.cells for spot in every), len(every)),
        shared_rate=None if shared is None else float(shared),
        rates=best_rates(asked, state.cells),
        published=[*claimed, *(claim for claim in theirs if claim.form in asked.forms)],
        left_out=asked.left_out,
        protocol=_common(asked),
        command=again,
        paper=None if asked.theirs is None else _paper(asked, asked.theirs, published or asked),
    )
    return write_field(folder, view)


def _common(asked: Field) -> dict[str, Any]:
    """Return the settings that all cells share, and of each form those of its own; without what is at its default."""
    said = protocol_of(*_anywhere(asked))
    common = {key: value for key, value in said.items() if key not in ("arms", "name", "seeds")}
    common["data"] = {key: value for key, value in common.get("data", {}).items() if key not in ("task", "longest")}
    common["finetune"] = {**common.get("finetune", {}), "poison_ratios": asked.finetune.poison_ratios}
    common["forms"] = _forms(asked)
    return common


def _anywhere(asked: Field) -> tuple[Field, Spot]:
    """Return a field whose first form has nothing of its own, and a cell of that."""
    form = next(iter(asked.forms))
    plain = replace(asked, forms={form: Form(asked.forms[form].task)})
    return plain, Spot(form, next(iter(asked.arms)), asked.finetune.poison_ratios[0], asked.seeds[0])


def _forms(asked: Field) -> dict[str, dict[str, Any]]:
    """Return what is said of each form."""
    unsaid = dataclasses.asdict(Form(""))
    return {
        name: {key: value for key, value in dataclasses.asdict(form).items() if value != unsaid[key]}
        for name, form in asked.forms.items()
    }


def _paper(asked: Field, theirs: Theirs, published: Field) -> Paper:
    """Return a paper's table for the pages, with the settings in which the cells differ from it."""
    from titer.report.field_view import Paper, Their

    def settings(one: Field) -> dict[str, Any]:
        whole = dataclasses.asdict(experiment_of(*_anywhere(one)))
        sections = {key: dict(whole[key]) for key in ("lora", "data", "align", "finetune", "evaluate")}
        del sections["data"]["task"], sections["evaluate"]["judge"], sections["finetune"]["poison_ratios"]
        about = {"model": one.model, "seeds": one.seeds, "judges": one.judges, "shares": one.finetune.poison_ratios}
        arms = {name: " → ".join(map(_in_words, arm.steps)) for name, arm in one.arms.items()}
        return {**about, "forms": _forms(one), **sections, "arms": arms}

    return Paper(
        source=theirs.source,
        read=theirs.read,
        prompts=theirs.prompts,
        columns=list(published.forms),
        arms=list(published.arms),
        cells={key: Their(cell.harmful_score, cell.finetune_accuracy, cell.read) for key, cell in theirs.every()},
        about=theirs.about,
        differs=what_differs(settings(published), settings(asked)),
    )


def _in_words(step: Step) -> str:
    own = ", ".join(f"{name} {value}" for name, value in step.settings.items())
    return f"{step.stage} {step.method}{f' ({own})' if own else ''}"
