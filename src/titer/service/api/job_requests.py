"""What a client may ask of a fine-tuning, by OpenAI's rules and the operator's policy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from titer.errors import did_you_mean
from titer.service.identifiers import SUFFIX
from titer.service.policy import Policy, TrainingPolicy
from titer.service.refusals import Refused, invalid

PAIRS, KEY, VALUE = 16, 64, 512
"""Most pairs of `metadata`, and the longest key and value."""
OURS = "titer_"
"""Keys of `metadata` that begin so are options of the server."""
WIDEST = 1000.0
"""Highest `learning_rate_multiplier`."""


def _auto(**number: Any) -> Any:
    """Return a number or `auto`, which is checked later: an error then names it as OpenAI does, and not as pydantic."""
    return Field(default="auto", json_schema_extra={"anyOf": [{"const": "auto"}, number, {"type": "null"}]})


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Hyperparameters(_Request):
    """OpenAI's hyperparameters; `auto` is filled in from the policy."""

    n_epochs: Any = _auto(type="integer", minimum=1, maximum=50)
    batch_size: Any = _auto(type="integer", minimum=1, maximum=256)
    learning_rate_multiplier: Any = _auto(type="number", exclusiveMinimum=0, maximum=WIDEST)


class Supervised(_Request):
    """How to train on answers."""

    hyperparameters: Hyperparameters | None = None


class Method(_Request):
    """OpenAI's `method`; this server has one."""

    type: str
    supervised: Supervised | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class JobRequest(_Request):
    """The body of a request for a fine-tuning."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: str | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[Any] | None = None


def check(request: JobRequest, rules: Policy) -> dict[str, Any]:
    """Return OpenAI's `method` of a request with every number filled in.

    Raises:
        Refused: For what cannot be meant, or what this server does not do.
    """
    if request.integrations:
        raise invalid("integrations", "This server has no integrations; leave them out.", "unsupported_integration")
    if request.suffix is not None and not SUFFIX.fullmatch(request.suffix):
        raise invalid(
            "suffix",
            "`suffix` has 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or a digit.",
        )
    _check_metadata(request.metadata or {}, rules.training)
    return _method(request, rules.training)


def _check_metadata(metadata: dict[str, str], training: TrainingPolicy) -> None:
    if len(metadata) > PAIRS:
        raise invalid("metadata", f"`metadata` has {len(metadata)} pairs; there may be {PAIRS}.")
    for key, value in metadata.items():
        if len(key) > KEY or len(value) > VALUE:
            raise invalid("metadata", f"A key of `metadata` has at most {KEY} characters, and a value {VALUE}.")
        if "\0" in key + value:
            raise invalid("metadata", "`metadata` holds a NUL character.")
        if key.startswith(OURS):
            _check_option(key, value, training)


def _check_option(key: str, value: str, training: TrainingPolicy) -> None:
    """Raise unless an option of this server is known, and its value is one that the operator allows."""
    if key != "titer_method":
        raise invalid(f"metadata.{key}", f"There is no option {key!r} of this server; `titer_method` is one.")
    allowed = sorted({training.method, *training.allowed})
    if value not in allowed:
        message = f"The operator of this server does not allow the method {value!r}. {did_you_mean(value, allowed)}"
        raise invalid(f"metadata.{key}", message)


def _method(request: JobRequest, training: TrainingPolicy) -> dict[str, Any]:
    method, param, given = request.method, "hyperparameters", request.hyperparameters
    if method is not None:
        if method.type != "supervised" or method.dpo is not None or method.reinforcement is not None:
            message = f"This server does not train with the method {method.type!r}; it does with `supervised` alone."
            raise invalid("method", message, "unsupported_method")
        inner = method.supervised.hyperparameters if method.supervised is not None else None
        if inner is not None:
            if given is not None:
                raise invalid("hyperparameters", "`hyperparameters` stand in `method` already; leave these out.")
            given, param = inner, "method.supervised.hyperparameters"
    found = given or Hyperparameters()
    numbers = {
        "n_epochs": _number(found.n_epochs, f"{param}.n_epochs", 1, 50, training.n_epochs),
        "batch_size": _number(found.batch_size, f"{param}.batch_size", 1, 256, training.batch_size),
        "learning_rate_multiplier": _factor(found.learning_rate_multiplier, f"{param}.learning_rate_multiplier"),
    }
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def _number(value: Any, param: str, low: int, high: int, otherwise: int) -> int:
    if value is None or value == "auto":
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(param, f"`{param}` is a whole number from {low} to {high}, or `auto`, not {value!r:.80}.")
    return value


def _factor(value: Any, param: str) -> float:
    if value is None or value == "auto":
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= WIDEST:
        raise invalid(param, f"`{param}` is a number above 0 and at most {WIDEST:g}, or `auto`, not {value!r:.80}.")
    return float(value)


def check_key(key: str | None) -> str | None:
    """Return the `Idempotency-Key` of a request; raises `Refused` for one that is too long."""
    if key is not None and not 0 < len(key) <= 255:
        raise Refused(400, "An `Idempotency-Key` has 1 to 255 characters.", "Idempotency-Key", "invalid_value")
    return key
