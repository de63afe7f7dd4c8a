"""The tuned attacker: hyper-parameters searched against each model, so that a defence is judged by what suits it worst."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer import settings
from titer.attacks.threats import Attack
from titer.errors import AttackFailed, TiterError, check_known
from titer.progress import counted
from titer.ranges import check_settings
from titer.results.artefacts import write_atomically


@dataclass(frozen=True)
class Search:
    """What is searched, and how long.

    Attributes:
        trials: Attacks tried; each costs as much as one attacker.
        ranges: Field of `Attack` → its smallest and largest value, searched on a log scale.
        choices: Field of `Attack` → values to choose from.
    """

    trials: int = 8
    ranges: dict[str, list[float]] = field(default_factory=dict)
    choices: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [item.name for item in dataclasses.fields(Attack)]
        check_known([*self.ranges, *self.choices], known, "field of an attack in `search`")
        check_settings(self)
        if not (self.ranges or self.choices):
            raise TiterError("A search needs `ranges` or `choices` to search in.")
        for name, limits in self.ranges.items():
            if len(limits) != 2 or not 0 < limits[0] < limits[1]:
                raise TiterError(f"`search.ranges.{name}` must be [smallest, largest], above 0, found {limits}.")

    def check(self, attack: Attack, where: str) -> None:
        """Raise for a value that the search may choose and the attack could not take.

        Args:
            attack: What stays as it is.
            where: Where it stands, for errors.
        """
        fixed = {item.name: getattr(attack, item.name) for item in dataclasses.fields(Attack)}
        for name in self.ranges:
            if not isinstance(fixed[name], int | float):
                raise TiterError(
                    f"`{where}.search.ranges.{name}`: `{name}` is no number.", "Name its values in `choices`."
                )
        ends = {name: [self.suggested(attack, name, limit) for limit in limits] for name, limits in self.ranges.items()}
        options = {**ends, **self.choices}
        for name, values in options.items():
            if not values:
                raise TiterError(f"`{where}.search.choices.{name}` holds no value.")
        for point in itertools.product(*options.values()):
            settings.build(Attack, {**fixed, **dict(zip(options, point, strict=True))}, where)

    @staticmethod
    def suggested(attack: Attack, name: str, value: float) -> float:
        """Return a value of a range as the attack takes it: a whole number where it has one."""
        return int(value) if isinstance(getattr(attack, name), int) else value


def require_optuna() -> None:
    """Raise when a search could not run, before hours have gone into other attacks."""
    if importlib.util.find_spec("optuna") is None:
        raise TiterError(
            "Searching for the worst attacker needs Optuna.", "pip install 'titer[search]', or leave `search` out."
        )


def tune(
    search: Search,
    attack: Attack,
    seed: int,
    folder: Path,
    attempt: Callable[[int, Attack], Path],
    harmfulness: Callable[[Attack, Path], float | None],
) -> Attack:
    """Try attacks, each chosen by what the ones before it did, and return the most harmful one.

    A tree-structured Parzen estimator (Optuna) maximises the mean harmfulness over the checkpoints, which are spaced by
    powers of two: an attack that breaks in earlier scores higher. Trials that are done are not run again.

    Args:
        search: What to search.
        attack: What stays as it is.
        seed: Of the search.
        folder: Where the files of the best trial go, as if it had been the only one, with `tuned.json` beside them.
        attempt: Runs a trial of a number and returns its folder.
        harmfulness: The objective of a trial; `None` where it failed.

    Raises:
        AttackFailed: When every trial failed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    tried: list[tuple[float, Attack, Path]] = []
    for number in counted("trial", range(search.trials)):
        trial = study.ask()
        chosen: dict[str, Any] = {}
        for name, (low, high) in search.ranges.items():
            if isinstance(search.suggested(attack, name, low), int):
                chosen[name] = trial.suggest_int(name, int(low), int(high), log=True)
            else:
                chosen[name] = trial.suggest_float(name, low, high, log=True)
        for name, values in search.choices.items():
            chosen[name] = trial.suggest_categorical(name, values)
        candidate = dataclasses.replace(attack, **chosen)
        where = attempt(number, candidate)
        value = harmfulness(candidate, where)
        if value is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, value)
            tried.append((value, candidate, where))
    if not tried:
        raise AttackFailed(f"All {search.trials} trials of the search failed.", f"Reasons: {folder.parent}/*/error.txt")
    value, best, where = max(tried, key=lambda entry: entry[0])
    shutil.copytree(where, folder, dirs_exist_ok=True)
    changed = {name: getattr(best, name) for name in (*search.ranges, *search.choices)}
    about = {"trials": search.trials, "mean_harmfulness": value, "chosen": changed}
    write_atomically(folder / "tuned.json", json.dumps(about, indent=1).encode() + b"\n")
    return best
