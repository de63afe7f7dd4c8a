"""What a request is answered with that cannot be served: OpenAI's error body, `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A request that is refused; the application turns it into a response.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do, for whoever reads it.
        param: Which parameter is wrong: `hyperparameters.n_epochs`.
        code: What programs go by: `invalid_value`, `model_not_found`.
        kind: OpenAI's `type`; by the status where not given.
        headers: Of the response.
        details: Whatever else belongs into the body's `error`: a list of `errors`, each with its line.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind = kind or KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers, self.details = headers or {}, details

    @property
    def body(self) -> dict[str, Any]:
        """What the response holds."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {**error, **self.details}}


KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def not_found(what: str, name: str, param: str | None = None, code: str | None = None) -> Refused:
    """Return the answer about what is not there, or is another organisation's, which is the same."""
    return Refused(404, f"No such {what}: {name!r}.", param or "id", code)


def invalid(param: str, message: str, code: str = "invalid_value") -> Refused:
    """Return the answer about a parameter that cannot be meant."""
    return Refused(400, message, param, code)


def compressed(coding: str) -> Refused:
    """Return the answer about a body that is compressed: it could be of any size."""
    return Refused(
        415, f"Content-Encoding `{coding}` is not taken: send the body as it is.", "Content-Encoding",
        "unsupported_media_type", headers={"Accept-Encoding": "identity"},
    )  # fmt: skip
