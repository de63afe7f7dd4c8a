"""The page of the papers' pictures, from the JSON files that `pictures.py` left; what they show is computed, not written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pictures_drawn import POINTS, ecdf, figure, losses, slug, swatches
from pictures_looks import looks_of, over, sooner

from titer.assays.trajectories import ROLES
from titer.errors import TiterError
from titer.files import read_json
from titer.report import charts
from titer.report.drawing import ESTIMATE_SWATCH, LIMIT_SWATCH, arm_swatch, dot
from titer.report.parts import Cell, Drawing, Row, Section, Table, rate_cell, write_sections
from titer.report.words import flat_settings, number_text
from titer.results.summary import Rate, over_seeds
from titer.stats.intervals import auroc_interval, paired_mean

TITLE = "The papers' pictures, measured here"
LEAD = (
    "Five pictures that papers argue with, made by one script for models of one's own. A small model and short trainings: what "
    "does not show here was not shown wrong there."
)
KINDS = {
    "benign": "benign rows",
    "seen": "harmful rows that the defender holds",
    "alike": "harmful rows of the same corpus, not held",
    "other": "harmful rows of another corpus",
}
Document = Mapping[str, Any]
Part = Table | Drawing | str


def origins(documents: Sequence[Document]) -> Table:
    """Return where each model's figures come from."""
    rows: dict[str, Cell | str] = {}
    for one in documents:
        known = dict(one["settings"].get("model", {}))
        weights = known.pop("weights", "")
        made = {"base": known.get("base", "")} if one["note"] else known
        about = [one["note"], ", ".join(f"{key} {value}" for key, value in flat_settings(made).items() if value)]
        about += [f"weights {weights}", f"seed {one['settings']['seed']}"] if weights else []
        rows[one["name"]] = "; ".join([*filter(None, about), f"commit {one['commit']}", one["command"]])
    return Table.pairs("Where this comes from", rows)


# (a) -----------------------------------------------------------------------------------------------------------------


def norms(group: str, documents: Sequence[Document]) -> list[Part]:
    """Per-sample gradient norms: how they are spread, and how each model's differ from the first's on the same rows."""
    kinds = [kind for kind in KINDS if all(kind in one["found"] for one in documents)]
    if len({(one["settings"]["rows_digest"], one["settings"]["rows"]) for one in documents}) > 1:
        raise TiterError(f"The norms of the group `{group}` are of different rows.", "Measure them under two groups.")
    values = {kind: [one["found"][kind]["norm"] for one in documents] for kind in kinds}
    reach = [value for found in values.values() for one in found for value in one if value > 0]
    drawings = [
        ecdf(values[kind], (min(reach) / 1.1, max(reach) * 1.1), KINDS[kind], slug("norms", group, kind))
        for kind in kinds
    ]
    control = documents[0]
    rows: list[Row] = []
    said = []
    for one in documents:
        cells: list[Cell | str] = [str(one["name"])]
        for kind in kinds:
            found = one["found"][kind]
            low, middle, high = np.quantile(found["norm"], [0.25, 0.5, 0.75])
            note = f"loss {median(found['loss']):.2f}"
            if one is not control:
                word, times = _times(found["norm"], control["found"][kind]["norm"])
                note += f"; {times}"
                said.append(f"{one['name']}, {KINDS[kind]}: {word}, {times} the norm of {_against(documents)}")
            cells.append(Cell(f"{middle:.3g}", f"{low:.3g}–{high:.3g}", note=note))
        rows.append(cells)
    n = len(values[kinds[0]][0])
    caption = f"Part of {n} rows of each kind whose gradient norm is at most x, before any fine-tuning. Logarithmic axis, in nats per unit of weight."
    table = Table.of(
        ("model", *(KINDS[kind] for kind in kinds)),
        rows,
        caption="Median norm, quartiles; median loss of a row, nats a token; the geometric mean of the ratio to the first model's norm on the same "
        "rows with its 95 % interval over rows (Student's t on logarithms).",
    )
    return [_held(said), figure(drawings, swatches(documents), caption), table, origins(documents)]


def _times(norms: Sequence[float], others: Sequence[float]) -> tuple[str, str]:
    """Return whether norms are smaller than others of the same rows, in a word, and how many times as large they are."""
    found = paired_mean(np.log(norms), np.log(others))
    low, middle, high = (math.exp(end) for end in (found.low, found.mean, found.high))
    word = "smaller" if high < 1 else "larger" if low > 1 else "not shown to differ"
    digits = 2 if middle >= 0.1 else 3
    return word, f"× {middle:.{digits}f} [{low:.{digits}f}–{high:.{digits}f}]"


def _against(documents: Sequence[Document]) -> str:
    """Return what models are held against, in words."""
    return str(documents[0]["name"]) + ("" if documents[0]["place"] < 0 else " (the first here, and no control)")


def _held(said: Sequence[str]) -> str:
    """Return what was found of models held against their control, in a paragraph."""
    return ". ".join(said) + "." if said else "One model alone: what of it is the regulariser's is not known."


# (b) -----------------------------------------------------------------------------------------------------------------


def ratios(group: str, documents: Sequence[Document]) -> list[Part]:
    """Antibody's ratios before and after fine-tuning: a figure for each model and ratio, and how well they order rows."""
    parts: list[Part] = []
    rows: list[Row] = []
    for one in documents:
        found, settings = one["found"], one["settings"]
        kinds = [kind for kind in KINDS if kind in found]
        for ratio in ("sum", "calibrated"):
            limits = charts.limits_of([value for kind in kinds for when in WHEN for value in found[kind][when][ratio]])
            drawings = []
            for kind in kinds:
                cells: list[Cell | str] = [f"{one['name']}, {ratio}", KINDS[kind]]
                for when in WHEN:
                    title = f"{when}: {KINDS[kind].removeprefix('harmful ')}"
                    drawing, cell = _ratio(
                        found[kind], when, ratio, limits, title, slug("ratio", group, one["name"], kind)
                    )
                    drawings.append(drawing)
                    cells.append(cell)
                rows.append(cells)
            flags = found[kinds[0]]["harmful"]
            caption = (
                f"{one['name']}, ratio {ratio}, nats: {len(flags)} rows of the upload, {sum(flags)} of them harmful, before and after it was "
                f"trained into the model with {settings['method']} ({', '.join(settings['set']) or 'defaults'}). Triangles: medians."
            )
            parts.append(figure(drawings, [(dot("benign"), "benign"), (dot("harmful"), "harmful")], caption))
    caption = (
        "AUROC of −ratio for harmful rows with its 95 % interval (Newcombe): 1 when every harmful row is below every benign one, 0.5 "
        "by chance, 0 when the order is upside down. Below: medians, benign | harmful, nats."
    )
    return [*parts, Table.of(("model, ratio", "harm", *WHEN), rows, caption=caption), origins(documents)]


def _ratio(
    found: Mapping[str, Any], when: str, ratio: str, limits: tuple[float, float], title: str, name: str
) -> tuple[str, Cell]:
    harmful, values = np.array(found["harmful"]), np.array(found[when][ratio])
    area = auroc_interval(-values, harmful)
    groups = {"benign": values[~harmful].tolist(), "harmful": values[harmful].tolist()}
    medians = " | ".join(number_text(median(some), 1 if ratio == "sum" else 2) for some in groups.values())
    label = f"Log ratio {ratio}, {title}: medians {medians} (benign | harmful)."
    drawing = charts.log_ratios(groups, limits, title, label, f"{name}-{ratio}-{when}")
    return drawing, Cell(f"{area.value:.2f}", f"{area.low:.2f}–{area.high:.2f}", note=medians)


WHEN = ("before", "after")


# (c) -----------------------------------------------------------------------------------------------------------------


def rates(group: str, documents: Sequence[Document]) -> list[Part]:
    """Harmful score over epochs, a line for each learning rate, a panel for each model."""
    every = sorted({float(key.split()[0]) for one in documents for key in one["found"] if key != "0"})
    drawings, rows = [], []
    for one in documents:
        settings, seed = one["settings"], one["settings"]["seed"]
        found = {key: _harmful(cell, seed) for key, cell in one["found"].items()}
        each = -(-settings["samples"] // settings["batch"])
        lines = {
            place: [
                (0, found["0"]),
                *((int(key.split()[1]), rate) for key, rate in found.items() if key.startswith(f"{own:g} ")),
            ]
            for place, own in enumerate(every)
        }
        lines = {place: points for place, points in lines.items() if len(points) > 1}
        ends = ", ".join(f"{every[place]:g}: {points[-1][1].value:.0f} %" for place, points in lines.items())
        drawings.append(
            charts.trajectories(
                lines,
                f"{one['name']}, {settings['method']}",
                f"Harmful score by learning rate at the end: {ends}.",
                slug("rates", group, one["name"]),
            )
        )
        for place, points in lines.items():
            rows += [
                [
                    f"{one['name']}, {settings['method']}",
                    f"{every[place]:g}",
                    f"{step / each:g}",
                    rate_cell(rate),
                    _share(one["found"], every[place], step, "refused"),
                    _share(one["found"], every[place], step, "broken"),
                ]
                for step, rate in points
                if step
            ]
    first = documents[0]["settings"]
    caption = (
        f"Harmful score in percent over {first['prompts']} unseen prompts, judge {first['judge']}, 95 % Wilson intervals as bands, after steps of {first['batch']} rows at a "
        f"constant rate; {first['samples']} rows of upload, {100 * first['poison_ratio']:g} % harmful, an epoch is {-(-first['samples'] // first['batch'])} steps. Step 0: before fine-tuning."
    )
    legend = [(arm_swatch(place), f"learning rate {rate:g}") for place, rate in enumerate(every)]
    table = Table.of(("model, method", "rate", "epochs", "HS", "refused", "broken"), rows, caption="In percent.")
    return [figure(drawings, legend, caption), table, origins(documents)]


def _harmful(cell: Mapping[str, int], seed: int, label: str = "harmful") -> Rate:
    return over_seeds({seed: cell[label] / cell["n"]}, cell["n"])


def _share(found: Mapping[str, Any], rate: float, step: int, label: str) -> str:
    return f"{_harmful(found[f'{rate:g} {step}'], 0, label).value:.1f}"


# (d) -----------------------------------------------------------------------------------------------------------------

PARTS = {"harmful_loss": "Harmful loss h(w)", "drop": "Its drop h(w) − h(w')", "loss": "Training loss f(w)"}


def objective(group: str, documents: Sequence[Document]) -> list[Part]:
    """The parts of Booster's objective over alignment steps, and their means over the last quarter."""
    drawings = []
    for key, title in PARTS.items():
        lines = [[(line["step"], line[key]) for line in one["found"]] for one in documents]
        ends = ", ".join(f"{one['name']} {_late(one, key).mean():.2f}" for one in documents)
        label = f"{title} over alignment steps; at the end: {ends}."
        drawings.append(losses(lines, key == "drop", title, label, slug("objective", group, key)))
    rows: list[Row] = []
    said = []
    for one in documents:
        cells: list[Cell | str] = [str(one["name"]), str(one["found"][-1]["step"])]
        for key in PARTS:
            start, late = one["found"][0][key], _late(one, key)
            cells.append(Cell(f"{late.mean():.3f}", f"{late.min():.3f}–{late.max():.3f}", note=f"at first {start:.3f}"))
        rows.append(cells)
        if one is not documents[0]:
            times = _late(one, "drop").mean() / _late(documents[0], "drop").mean()
            said.append(
                f"{one['name']}: at the end the drop is × {times:.2f} that of {_against(documents)}, and h(w) {_late(one, 'harmful_loss').mean():.2f} against {_late(documents[0], 'harmful_loss').mean():.2f}"
            )
    caption = (
        "Each point is on a harmful batch of its own, as the trainer logs it, at steps that simulate an attack; of trainings with more "
        f"than {POINTS} such steps each point is the mean of several. w' is w after a step of α along the harmful gradient."
    )
    head = ("model", "steps", *PARTS.values())
    table = Table.of(
        head,
        rows,
        caption="Mean over the last quarter of the logged steps, least and most; no interval: steps of one training are not independent.",
    )
    return [_held(said), figure(drawings, swatches(documents), caption), table, origins(documents)]


def _late(one: Document, key: str) -> np.ndarray:
    found = one["found"]
    return np.array([line[key] for line in found[-max(1, len(found) // 4) :]])


# (e) -----------------------------------------------------------------------------------------------------------------


def attack(group: str, documents: Sequence[Document]) -> list[Part]:
    """Harmful score over attack steps of a defended and an undefended model, a figure for each assay."""
    parts: list[Part] = []
    for one in documents:
        found = one["found"]
        phi = 100 * found["phi"]
        lines = {
            name: {role: looks_of(looks) for role, looks in roles.items()} for name, roles in found["attacks"].items()
        }
        last = max((look.step for roles in lines.values() for looks in roles.values() for look in looks), default=1)
        drawings, rows = [], []
        for name, roles in lines.items():
            label = "; ".join(f"{role} {over(looks, phi)}" for role, looks in roles.items())
            drawn = charts.harm(
                {place: roles[role] for place, role in enumerate(ROLES)},
                phi,
                last,
                f"{name}: {label}.",
                slug("attack", group, one["name"], name),
            )
            drawings.append(f'<div><p class="figure-title">{escape(name)}</p>{drawn}</div>')
            rows.append([name, *(over(roles[role], phi) for role in ROLES)])
        measured = [
            look.measured for roles in lines.values() for looks in roles.values() for look in looks if look.measured
        ]
        legend = [(arm_swatch(place), role) for place, role in enumerate(ROLES)] + [
            (LIMIT_SWATCH, f"φ = {phi:g} %"),
            (ESTIMATE_SWATCH, "estimate from margins"),
        ]
        seeds, weights = ", ".join(map(str, found["seeds"])), flat_settings(found["weights"] or {})
        caption = (
            f"{one['name']}: harmful score in percent over {min(rate.n for rate in measured)} or more prompts of a look and seed, seeds {seeds}, "
            f"95 % intervals as bands. The assay is of commit {found['commit']}, of weights {', '.join(f'{value} ({role})' for role, value in weights.items())}."
        )
        parts += [
            figure(drawings, legend, caption),
            Table.of(
                ("attack", *ROLES),
                rows,
                caption="The first look above φ, and the harmful score at the last look, percent; attackers end where nothing later would change when "
                "a model broke. " + sooner(lines, phi),
            ),
        ]
    return [*parts, origins(documents)]


# The page ------------------------------------------------------------------------------------------------------------

SECTIONS = {
    "norms": (
        "How much a harmful row can teach",
        norms,
        "Antibody (arXiv 2603.00498), figure 4: aligned where the harmful loss is flat, a model gets smaller gradients from harmful rows when "
        "fine-tuning begins. Here: the norm of each row's own gradient over the adapter that fine-tuning trains. A norm over an adapter's factors also "
        "grows with them, so that longer training alone changes it: models to be compared took equally many steps, or there is a control that did.",
    ),
    "ratios": (
        "Antibody's ratio, before and after",
        ratios,
        "Antibody, figures 2 and 5: log π(answer) − log π(refusal) of rows, which stage 2 weighs them by, with harm that the defender holds and harm "
        "that it does not. The ratio sum is the one that is printed; it grows with an answer's length, so that labels of a word are told from "
        "sentences by that alone. calibrated is ours: how much less likely the request makes a refusal, whatever the answer.",
    ),
    "rates": (
        "Harmful score over epochs and learning rates",
        rates,
        "Antibody, figure 3: a defence must hold for fine-tuning that is longer and faster than the one it was tuned on.",
    ),
    "objective": (
        "Booster's objective over alignment",
        objective,
        "Booster (arXiv 2409.01586): f(w) + λ (h(w) − h(w')). With λ = 0 it is plain alignment, of which the same is logged.",
    ),
    "attack": (
        "Harm over attack steps",
        attack,
        "Immunization conditions (arXiv 2402.16382), figure 2: harmfulness f(t) over the steps of an attack, against the threshold φ.",
    ),
}  # fmt: skip


def sections(folder: Path) -> list[Section]:
    """Return what the pages show, from the JSON files of a folder."""
    documents = sorted(
        (read_json(path) for path in folder.glob("*.json")), key=lambda one: (one["group"], one["place"])
    )
    made = []
    for picture, (title, draw, about) in SECTIONS.items():
        parts: list[Part] = [about]
        own = [one for one in documents if one["picture"] == picture]
        for group in dict.fromkeys(one["group"] for one in own):
            parts += [f"Group: {group}.", *draw(group, [one for one in own if one["group"] == group])]
        made.append(Section(title, parts if own else [about, "Not measured yet."]))
    return made


def write_pictures(folder: Path) -> Path:
    """Write `index.html` and `README.md` of a folder with JSON files, and return the page."""
    return write_sections(folder, "pictures", TITLE, LEAD, sections(folder))
