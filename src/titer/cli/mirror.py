"""A verb that mirrors a workflow: its arguments as options, with their defaults, and the help that its docstring gives."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from titer.cli.common import given_in, in_range, path
from titer.cli.settings import documented

R = TypeVar("R")

FLAGS = {
    "output": ("--output", "-o"),
    "model": ("--model", "-m"),
    "profile": ("--profile", "-p"),
    "settings": ("--set",),
    "source_format": ("--from",),
    "target_format": ("--to",),
    "workers": ("--workers", "--parallel"),
    "resources": ("--resource",),
}
"""Options that are not their argument's name with two dashes."""


class Call(Generic[R]):
    """The call of a workflow with what was given on the command line.

    Attributes:
        arguments: What was given, by name.
    """

    def __init__(self, workflow: Callable[..., R], arguments: Mapping[str, Any]) -> None:
        self.workflow, self.arguments = workflow, arguments

    def __call__(self) -> R:
        """Run the workflow."""
        return self.workflow(**self.arguments, show=True)

    def to(self, other: Callable[..., Any]) -> Any:
        """Run another that takes some of the same arguments."""
        known = inspect.signature(other).parameters
        return other(**{name: value for name, value in self.arguments.items() if name in known}, show=True)


def mirror(
    workflow: Callable[..., R], arguments: Collection[str] = (), about: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a function that is given a `Call` into a verb with the workflow's arguments as options, then its own.

    Args:
        workflow: The workflow.
        arguments: Those of its arguments that stand on the line without an option.
        about: Help that is not in its docstring, by argument.
    """
    helps = documented(workflow) | dict(about or {})
    taken = {name: one for name, one in inspect.signature(workflow).parameters.items() if name != "show"}
    mirrored = [_parameter(one, name in arguments, helps[name]) for name, one in taken.items()]

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]

        def command(context: typer.Context, **values: Any) -> None:
            given = {name: value for name, value in given_in(context).items() if name in taken}
            body(Call(workflow, given), **{one.name: values[one.name] for one in own})

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, *mirrored, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        command.__doc__ = body.__doc__
        return command

    return decorate


def _parameter(one: inspect.Parameter, positional: bool, about: str) -> inspect.Parameter:
    """Return an argument of a workflow as one that Typer understands."""
    words = {*re.findall(r"\w+", str(one.annotation))} - {"None"}
    kind: Any = next((each for each in (int, float, bool) if {each.__name__} == words), str)
    more: dict[str, Any] = {"callback": in_range} if kind in (int, float) else {}
    default = one.default
    if words == {"str", "Path"}:
        kind, more = Path, {"parser": path, "metavar": "PATH"}
        default = Path(default) if isinstance(default, str) else default
    elif words & {"Sequence", "Settings"}:
        kind, more = list[str], {"metavar": "KEY=VALUE"} if "Settings" in words else {}
        default = default if default == one.empty else list(default) if default else None
    if default is None:
        kind = kind | None
    flags = FLAGS.get(one.name, (f"--{one.name.replace('_', '-')}",))
    info = typer.Argument(help=about, **more) if positional else typer.Option(*flags, help=about, **more)
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info], default=default
    )
