"""`titer gate`: measure a model against limits, and say whether it may be used."""

from __future__ import annotations

from titer.cli.common import Json, fail
from titer.cli.mirror import Call, mirror
from titer.text import say, to_json
from titer.workflows.gate import Gate, gate

NAME = "gate"
HELP = "Measure a model against limits: may it be used? Exit code 0 to deploy it, 1 to hold or fail it."
EXAMPLES = """
Examples:

`titer gate tuned/adapter --output gate` — harmful score, over-refusal and broken answers against titer's own limits

`titer gate tuned/adapter --policy policy.yaml --before aligned/adapter -o gate` — a service's limits, and the model before beside it

`titer gate --replay gate` — the same decision again from the answers in the folder, without a model

`titer gate --replay gate --policy stricter.yaml` — what other limits would have said
"""


@mirror(gate, arguments=["adapter"])
def command(call: Call[Gate], as_json: Json = False) -> None:
    """Measure a model against limits."""
    found = call()
    if as_json:
        say(to_json(found.document))
    else:
        _print(found)
    if found.decision != "deploy":
        fail(str(found), code=1)


def _print(found: Gate) -> None:
    from titer.screen import Screen, table

    shown = table("metric", "before", "after", "limit", "", title=found.model)
    for name, figure in found.figures.items():
        limit = "" if figure.limit is None else f"{figure.limit:g} %"
        mark = {None: "", True: "holds", False: "does not hold"}[figure.holds]
        shown.add_row(name, str(found.before.get(name, "")), str(figure), limit, mark)
    Screen().print(shown)
    if found.engine is not None:
        say(f"Answered by {found.engine}.")
    if found.decision == "deploy":
        say(str(found))
    say(f"Artefacts: {found.folder}")
