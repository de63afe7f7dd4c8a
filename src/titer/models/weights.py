"""What is refused of loaded weights: some that are missing or strays, no numbers, or a model that sees later tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from titer.errors import TiterError
from titer.models.folders import WHOLE_MODEL

if TYPE_CHECKING:
    from torch import Tensor


def refuse_strays(
    where: str,
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: Mapping[str, str] | None = None,
    hint: str | None = None,
) -> None:
    """Raise `TiterError` when weights and model do not fit each other: nothing is filled in, nothing passed over.

    Args:
        where: What was loaded or saved, for the message.
        missing: Weights of the model that are not there.
        unexpected: Weights that the model has no place for.
        shapes: What is wrong with the shape of others.
        hint: What to do about it.
    """
    found = [
        f"{len(names)} {kind} ({_listed(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if shapes:
        found.append(f"{len(shapes)} of another shape ({_listed([f'{name}, {how}' for name, how in shapes.items()])})")
    if found:
        raise TiterError(f"{where} does not fit: of its weights, {', '.join(found)}.", hint or WHOLE_MODEL)


def refuse_nonfinite(where: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `TiterError`, naming them, when some of the weights are infinite or no numbers.

    Reads each weight once and makes no copy of it. Weights of one byte or less (quantised ones) are passed over.
    """
    found = [f"{name}: {kind}" for name, weight in weights if (kind := _nonfinite(weight))]
    if found:
        raise TiterError(
            f"{where} holds weights that are not finite, {len(found)} of them ({_listed(found)}).",
            "A training that ran away leaves them: train again with a smaller learning rate, or from weights that are whole.",
        )


def refuse_nonfinite_logits(where: str, model: Any, prompt: Sequence[int]) -> None:
    """Raise `TiterError` when a model says of a prompt what is no number: finite weights may be too large to multiply."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([list(prompt)], device=next(model.parameters()).device)).logits
    if _nonfinite(logits):
        raise TiterError(
            f"{where} puts out logits that are not finite, so nothing that is measured of it would mean anything.",
            "Its weights ran away, or do not belong to this architecture: train it again, or name another model.",
        )


def refuse_lookahead(where: str, model: Any) -> None:
    """Raise `TiterError` for a model that is no causal one: what it says of a token depends on later ones."""
    import torch

    from titer.packing.alone import check_causal, coarsest_precision

    vocabulary = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad(), coarsest_precision() as precision:
        check_causal(model, [place % vocabulary for place in range(1, 9)], precision, where)


def _nonfinite(weight: Tensor) -> str:
    """Return `nan` or `inf` for a weight that holds one, else nothing."""
    import torch

    weight = weight.to_local() if hasattr(weight, "to_local") else weight  # the own part of one that is sharded
    if not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel():
        return ""
    # What is no number becomes both least and most.
    ends = torch.stack(torch.aminmax(weight.detach()))
    if ends.isfinite().all():
        return ""
    return "nan" if ends.isnan().any() else "inf"


def _listed(names: Collection[str], most: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
