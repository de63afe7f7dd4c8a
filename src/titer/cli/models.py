"""`titer models`: the embedded model, and whether another one can be loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.cli.common import Json
from titer.text import say, to_json
from titer.workflows.common import EMBEDDED

NAME = "models"
HELP = "Show a model's size, template and adapter; fetches the embedded one when it is not there yet."
EXAMPLES = """
Examples:

`titer models` — the embedded default

`titer models my-model/ --json`

The embedded model is kept in the user's cache folder, or in `$TITER_CACHE`. Hub models are where the Hugging Face libraries keep
them; `HF_ENDPOINT` names another hub, and with `HF_HUB_OFFLINE=1` none is asked.
"""


def command(
    model: Annotated[str, typer.Argument(help="A local folder, a hub id, or the embedded model.")] = EMBEDDED,
    as_json: Json = False,
) -> None:
    """Describe a model."""
    from titer.models import ALPACA_TEMPLATE, cache_folder, load_model, load_tokenizer, locate, split_adapter

    base, adapter = split_adapter(model)
    tokenizer = load_tokenizer(base)
    loaded = load_model(base, adapter)
    alpaca = tokenizer.chat_template == ALPACA_TEMPLATE
    about = {
        "model": model,
        "base": locate(base),
        "adapter": None if adapter is None else str(adapter),
        "architecture": type(load_model(base) if adapter else loaded).__name__,
        "parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "dtype": str(next(loaded.parameters()).dtype).removeprefix("torch."),
        "template": "Alpaca (the model brings none)" if alpaca else "the model's own",
        "cache": str(cache_folder()),
    }
    if as_json:
        say(to_json(about))
        return
    for key, value in about.items():
        say(f"{key:13} {f'{value:,}' if isinstance(value, int) else value}")
