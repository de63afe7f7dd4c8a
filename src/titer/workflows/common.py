"""What workflows share: who calls them, checks of arguments, telling how it goes, results as tables."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from titer import progress
from titer.errors import TiterError, check_known
from titer.ranges import check_range

if TYPE_CHECKING:
    from pandas import DataFrame

    from titer.jobs.job import Job
    from titer.jobs.launchers import Launcher
    from titer.jobs.work import Work

P = ParamSpec("P")
R = TypeVar("R")
Settings = Mapping[str, Any] | Sequence[str]
"""Settings by name, or `name=value` texts whose values are YAML."""

EMBEDDED = "smollm2-135m-instruct"
"""The model that titer brings, by name (`titer.models.EMBEDDED`, whose import takes seconds)."""

logger = logging.getLogger(__name__)

# -- who calls --------------------------------------------------------------------------------------------------------


class Caller:
    """Who calls a workflow; by default Python, where an argument is called by its name."""

    def spell(self, name: str) -> str:
        """Return what the caller knows an argument as."""
        return name

    def command(self, workflow: str, given: Mapping[str, Any]) -> str:
        """Return what was typed, for the record."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        shown = (f"{name}={getattr(value, 'name', value)!r}" for name, value in plain.items() if name != "show")
        return f"titer.{workflow}({', '.join(shown)})"


_PYTHON = Caller()
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_caller: ContextVar[Caller] = ContextVar("caller", default=_PYTHON)
_given: ContextVar[Mapping[str, Any]] = ContextVar("given", default=_NOTHING)


@contextmanager
def called_by(caller: Caller, given: Mapping[str, Any]) -> Iterator[None]:
    """Take note, inside of the block, of who calls with which arguments; those with their defaults are not among them."""
    tokens = _caller.set(caller), _given.set(given)
    try:
        yield
    finally:
        _caller.reset(tokens[0])
        _given.reset(tokens[1])


def spell(name: str) -> str:
    """Return what the caller knows an argument as: `--data-dir` or `data_dir`."""
    return _caller.get().spell(name)


def command(name: str) -> str:
    """Return what was typed to call the workflow `name`."""
    return _caller.get().command(name, given())


def given() -> Mapping[str, Any]:
    """Return the arguments that were given, by name, in the order of the signature."""
    return _given.get()


def workflow(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function a workflow: its numbers are checked by their names, and without `show` it says nothing.

    What was given is known inside of it, so that an argument without an effect can be refused (`refuse_unused`).
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs).arguments
        for name, value in bound.items():
            if signature.parameters[name].annotation in ("int", "float"):
                check_range(name, value, spell(name))
        with called_by(_caller.get(), bound), nullcontext() if bound.get("show") else progress.shown(None):
            return function(*args, **kwargs)

    return called


# -- checks -----------------------------------------------------------------------------------------------------------


def refuse_unused(names: Collection[str], why: str) -> None:
    """Raise for the first of some arguments that was given, because it would have no effect; `why` goes on from there."""
    for name in given():
        if name in names:
            raise TiterError(f"`{spell(name)}` has no effect {why}.", "Leave it out.")


def refuse_unused_data_dir(datasets: Sequence[str]) -> None:
    """Raise when a folder of local copies was given, and none of the datasets is one that is looked for there."""
    from titer.data import is_named

    if not any(map(is_named, datasets)):
        found = ", ".join(f"`{name}`" for name in dict.fromkeys(datasets))
        refuse_unused(["data_dir"], f"on {found}; it holds copies of named datasets (`titer data` lists them)")


def refuse_what_is_there(paths: Sequence[Path], force: bool) -> None:
    """Raise when a file would be replaced by another without a word; `force` is the word."""
    for path in paths:
        if path.exists() and not force:
            raise TiterError(
                f"{path} is there already.",
                f"Name another place with `{spell('output')}`, or replace it with `{spell('force')}`.",
            )


def as_path(name: str, value: str | Path) -> Path:
    """Return an argument as a path; an empty one, as an unset variable leaves it, would be the current folder."""
    if not str(value).strip():
        raise TiterError(f"`{spell(name)}` is empty.", "Name a folder; the current one is `.`.")
    return Path(value)


def as_names(value: str | Sequence[str]) -> list[str]:
    """Return names, of which one alone may be given as a text."""
    return [value] if isinstance(value, str) else list(value)


def as_values(name: str, value: Settings | None) -> dict[str, Any]:
    """Return settings by name."""
    from titer.settings import parse_settings

    return dict(value) if isinstance(value, Mapping) else parse_settings(value or (), spell(name))


def as_overrides(value: Settings | None) -> list[str]:
    """Return settings as the `name=value` texts that settings files take, `finetune.training.max_steps=40`."""
    if isinstance(value, Mapping):
        # JSON is YAML too.
        return [f"{key}={json.dumps(each, ensure_ascii=False, default=str)}" for key, each in value.items()]
    return list(value or ())


HANDED_OUT = ("workers", "launcher", "partition", "resources", "address")
"""Arguments that say who runs jobs."""


def launcher_for(
    name: str, workers: int, partition: str | None, resources: Settings | None, address: str | Path | None
) -> Launcher:
    """Return who runs jobs, as arguments say it; those that have no effect with it are refused."""
    from titer.jobs.clusters import LAUNCHERS, choose

    check_known([name], LAUNCHERS, f"`{spell('launcher')}`")
    heeded = {"local": (), "slurm": ("partition", "resources"), "ray": ("resources", "address")}[name]
    refuse_unused({*HANDED_OUT[2:]} - {*heeded}, f"with the launcher `{name}`")
    asked = as_values("resources", resources)
    if partition is not None and asked.get("cluster", "slurm") != "slurm":
        refuse_unused(["partition"], f"on `cluster={asked['cluster']}`")
    if name == "slurm" and asked.get("cluster") == "debug":
        refuse_unused(["workers"], "on `cluster=debug`, which runs one job after another")
    return choose(name, workers, partition, asked, None if address is None else str(address))


# -- telling ----------------------------------------------------------------------------------------------------------


class Show(Protocol):
    """Who is told how a workflow goes. How far it is in between, `titer.progress` says."""

    def begins(self, job: Job) -> None:
        """Take note that a job begins."""

    def waits(self, job: Job, holder: str) -> None:
        """Take note that there is nothing to do before another process is done with a job."""

    def settled(self, job: Job) -> None:
        """Take note that a job has come to its end."""

    def expect(self, works: Sequence[Work]) -> None:
        """Take note of what there is to compute."""

    def remark(self, text: str) -> None:
        """Take note of something that can be passed over."""


class Silent:
    """Tells nobody anything but what failed, which goes to the log."""

    def begins(self, job: Job) -> None:
        """Say nothing."""

    def waits(self, job: Job, holder: str) -> None:
        """Say nothing."""

    def settled(self, job: Job) -> None:
        """Warn of a job that failed."""
        if job.status == "failed":
            logger.warning("%s failed: %s", job.name, job.reason)

    def expect(self, works: Sequence[Work]) -> None:
        """Say nothing."""

    def remark(self, text: str) -> None:
        """Say nothing."""


class OnScreen:
    """Says it on stderr."""

    def __init__(self) -> None:
        from titer.screen import Screen

        self.console = Screen(stderr=True)
        self._waited: set[str] = set()

    def begins(self, job: Job) -> None:
        """Say that a job begins, where no bar does."""
        if not self.console.is_terminal:
            self.console.print(f"… {job.name}")

    def waits(self, job: Job, holder: str) -> None:
        """Say that another process works on what comes next."""
        if job.key not in self._waited:
            self._waited.add(job.key)
            self.remark(f"{job.name}: at work in {holder}; waiting.")

    def settled(self, job: Job) -> None:
        """Say how a job came out."""
        from rich.text import Text

        mark = {
            "done": ("✓", "green"), "cached": ("=", "dim"), "incomplete": ("…", "yellow"), "failed": ("✗", "red"),
            "skipped": ("-", "yellow"),
        }[job.status]  # fmt: skip
        about = {"done": progress.duration(job.seconds), "cached": "done before"}.get(job.status, job.reason)
        self.console.print(Text.assemble(mark, f" {job.name}  ", (about, "dim")))

    def expect(self, works: Sequence[Work]) -> None:
        """Say how long work will take; the first time on a machine, its speed is measured for that."""
        from titer.jobs.estimates import each, in_words

        if works:
            text = in_words(each(works))
            self.remark(f"{text[0].upper()}{text[1:]}.")

    def remark(self, text: str) -> None:
        """Say it dimly."""
        self.console.print(text, style="dim")


def listener(show: Show | bool) -> Show:
    """Return who is told: nobody, or by `True` who looks at stderr, or whoever is given."""
    if isinstance(show, bool):
        return OnScreen() if show else Silent()
    return show


# -- results ----------------------------------------------------------------------------------------------------------


class Table:
    """A result that is a table too."""

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the table, by column."""
        raise NotImplementedError

    def to_pandas(self) -> DataFrame:
        """Return the table, one observation a row.

        Raises:
            TiterError: When pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise TiterError(
                "`to_pandas()` needs pandas, which is not installed.",
                "Install it (`pip install pandas`), or take `rows()`, which are dictionaries.",
            ) from error
        return pandas.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(max_rows=20, index=False))


class Unfinished(TiterError):
    """A part of the work could not be done.

    Attributes:
        result: What the workflow found of the rest.
    """

    def __init__(self, error: TiterError, result: Any) -> None:
        super().__init__(error.message, error.hint)
        self.result = result
