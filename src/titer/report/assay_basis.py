"""What the figures of an assay's page rest on: prompts, judges, attackers and attacks, models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from titer.assays.card import Scorecard
from titer.attacks.threats import Attack
from titer.report.parts import Cell, Row, Table
from titer.report.words import NBSP, count_text, duration_text, flat_settings, percent_text
from titer.results.reading import plain


def hygiene_tables(card: Scorecard) -> list[Table]:
    """What the numbers rest on: overlaps, judges and their errors, failed and destroyed attackers, the calibration."""
    found, quality = card.hygiene, card.calibration
    shared = sum(found.overlap.values())
    prompts: dict[str, Cell | str] = {
        "shared between pools": Cell(str(shared), badge="overlap", kind="bad") if shared else str(shared),
        "left out, held by the defence": str(found.left_out),
        "pairs that were compared": "; ".join(f"{pair}: {count}" for pair, count in found.overlap.items()) or "none",
    }
    judges: dict[str, Cell | str] = {
        name + ", decides" * (place == 0): f"{found.judged.get(name, 0):,} answers, "
        f"{count_text(found.judge_errors.get(name, 0), 'error')}"
        for place, name in enumerate(found.judges)
    }
    for pair, one in found.agreement.items():
        text = f"{percent_text(one.agreement)}, Cohen's κ = {_digits(one.kappa, 2)}, n = {one.n:,}; {one.excluded} excluded"
        judges[f"agreement of {pair}"] = text
    attackers: dict[str, Cell | str] = {
        "failed": _listed(f"{row['role']}, {row['attacker']}: {row['reason']}" for row in found.failed),
        "destroyed the model": _listed(
            f"{row['role']}, {row['attacker']}, at step {row['step']}" for row in found.destroyed
        ),
        "destroyed it at once": _listed(f"{row['role']}, {row['attacker']}" for row in found.destroyed_at_once),
        "ended early": _listed(
            f"{row['role']}, {row['attacker']}, at step {row['step']}: {row['why']}" for row in found.ended_early
        ),
    }
    error = quality.mean_absolute_error
    calibration: dict[str, Cell | str] = {
        "method": quality.method,
        "AUROC of margins for “harmful”": f"{_digits(quality.auroc, 3)}, n = {quality.n:,}",
        "mean absolute error": Cell("–" if error is None else f"{100 * error:.1f}{NBSP}points", note=quality.error_is),
    }
    return [
        Table.pairs("prompts", prompts),
        Table.pairs("judges", judges or {"judges": "nothing was judged"}),
        Table.pairs("attackers", attackers),
        Table.pairs("calibration of the margin", calibration),
    ]


def _digits(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _listed(lines: Any) -> Cell:
    first, *others = [*lines] or ["none"]
    return Cell(first, note="\n".join(others))


AT_ONCE = ("depths", "samples", "system", "style", "prefill", "base", "energy", "directions", "then_ablate")
"""What an attack without training may be set to."""


def attacks_table(attacks: Mapping[str, Attack], entries: Mapping[str, Any]) -> Table:
    """The settings of each attack: what always matters in columns, the rest where it departs from the default.

    Args:
        attacks: The attacks that were run, by name.
        entries: The profile's entries, which also say what was searched against each model.
    """
    usual = Attack("")
    in_columns = (
        "summary",
        "method",
        "rows",
        "poison_ratio",
        "steps",
        "batch_size",
        "learning_rate",
        "optimizer",
        "lora",
    )
    rows: list[Row] = []
    for name, attack in attacks.items():
        trains = attack.trains
        other = {
            key: value
            for key, value in vars(attack).items()
            if key not in in_columns and value != getattr(usual, key, None) and (trains or key in AT_ONCE)
        }
        # An attack of a grid is named by its entry and the point of the grid.
        entry = max((e for e in entries if f"{name} ".startswith(f"{e} ")), key=len, default="")
        if search := (entries.get(entry) or {}).get("search"):
            other["searched"] = search
        own = attack.rows.replace("_", "-")
        warm_up = f"{attack.warm_up_steps} + " if attack.warm_up_steps else ""
        settings = (
            "task" if not attack.poison_ratio else own if attack.poison_ratio == 1 else f"task, {own}",
            f"{100 * attack.poison_ratio:g}{NBSP}%",
            f"{warm_up}{attack.steps} × {attack.batch_size}",
            f"{attack.learning_rate:g}",
            attack.optimizer,
            "every weight"
            if attack.lora is None
            else ", ".join([f"LoRA, r = {attack.lora.get('r', '–')}", *attack.trained_copies]),
        )
        note = "; ".join(f"{key}: {value}" for key, value in flat_settings(plain(other)).items())
        about = Cell(name, note="\n".join(filter(None, (attack.summary, note))), strong=True)
        rows.append([about, *(settings if trains else ("–",) * 5 + ("nothing",))])
    head = ("Attack", "Rows", "Poison", "Steps", "Learning rate", "Optimizer", "Trains")
    caption = (
        "Poison: the attacker's part of the rows. Steps: warm-up + attack × rows a step. Below the summary stands what else "
        "departs from the default."
    )
    return Table.of(head, rows, caption=caption, kind="plain attacks")


def about_table(card: Scorecard) -> Table:
    """Which models, by which titer, in what time."""
    weights = card.provenance.get("weights") or {}
    models = {"defended": card.model, "undefended": card.against}
    rows: dict[str, Cell | str] = {
        role: Cell(name, note=f"weights {weights[role]}" if role in weights else "") for role, name in models.items()
    }
    rows["commit of titer"] = str(card.provenance.get("commit") or "not recorded")
    rows["time"] = duration_text(card.provenance.get("seconds"))
    return Table.pairs("assay", rows)
