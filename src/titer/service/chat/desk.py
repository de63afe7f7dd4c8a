"""Where chats are taken in: which model is meant, whether it may be used, what it is asked; then an engine answers.

Nothing here imports torch before the first chat.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from titer.data.records import Message
from titer.errors import TiterError
from titer.infer.serving import SERVING, Serving, read_serving, served_messages
from titer.service.access import Caller
from titer.service.chat.pieces import Adapter, Bounds, Listener, Ticket
from titer.service.chat.request import ChatRequest
from titer.service.context import Service
from titer.service.identifiers import new_id
from titer.service.policy import NOT_QUANTISED, ChatPolicy, Policy
from titer.service.refusals import Refused, invalid
from titer.service.tables import Model
from titer.service.tenants import Tenant

if TYPE_CHECKING:
    from titer.models import Template

logger = logging.getLogger(__name__)

PROMPTS = 1024
"""How many models' serving prompts are remembered."""


class Answering(Protocol):
    """What answers: `titer.service.chat.engine.Engine` here, `titer.service.chat.remote.Remote` elsewhere."""

    bounds: Bounds

    def submit(self, ticket: Ticket) -> None:
        """Take a request in."""

    def forget(self, name: str) -> None:
        """Drop a model that was deleted or held."""

    def close(self) -> None:
        """Stop."""

    @property
    def load(self) -> dict[str, int]:
        """How much there is to do."""


@dataclass(frozen=True)
class _Text:
    """What turns conversations with a base model into token ids.

    Attributes:
        template: Its template.
        context: Most tokens of a row; `None` for no limit.
        lock: A tokenizer is used by one thread at a time.
    """

    template: Template
    context: int | None
    lock: threading.Lock


class Desk:
    """Takes chats in.

    Args:
        service: The service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._texts: dict[str, _Text] = {}
        self._serving: OrderedDict[str, Serving | None] = OrderedDict()
        self._engine: tuple[str | None, Answering] | None = None

    def ask(self, caller: Caller, wanted: ChatRequest, listen: Listener) -> Ticket:
        """Take a request in; what comes of it is told to `listen`.

        Raises:
            Refused: For a model that is not there, another organisation's, or held; for what cannot be asked; when too many wait.
        """
        wanted.check()
        messages = wanted.conversation()
        base, adapter, policy = self._resolve(caller, wanted.model)
        weights, aligned = self._located(policy.models[base])
        if adapter is None and aligned is not None:
            adapter = Adapter(f"policy:{policy.models[base]}", "", "", aligned)
        text = self._text(weights)
        serving = None if adapter is None else self._serving_of(adapter)
        prompt = _prompt(text, messages, serving)
        sampling = wanted.sampling(len(prompt), text.context, policy.limits.chat_tokens)
        place = weights if policy.chat.forward is None else base
        ticket = Ticket(place, text.template, prompt, sampling, listen, adapter, wanted.n or 1, caller.org)
        self._answering(policy.chat).submit(ticket)
        return ticket

    def forget(self, name: str) -> None:
        """Drop a model that was deleted or held from memory."""
        with self._lock:
            self._serving.pop(name, None)
            engine = self._engine
        if engine is not None:
            engine[1].forget(name)

    @property
    def load(self) -> dict[str, int]:
        """How much there is to do, for metrics: answers, requests that wait, adapters and base models in memory."""
        return {} if self._engine is None else self._engine[1].load

    def close(self) -> None:
        """Stop answering."""
        with self._lock:
            if self._engine is not None:
                self._engine[1].close()
                self._engine = None

    def _resolve(self, caller: Caller, name: str) -> tuple[str, Adapter | None, Policy]:
        """Return the base model's name and the adapter that a model's name stands for, and the policy."""
        policy = self._service.policy()
        if name in policy.models:
            return name, None, policy
        with caller.reading() as tenant:
            model = tenant.find(Model, name)
            if model is None or model.base not in policy.models:
                message = f"The model `{name}` does not exist or you do not have access to it."
                raise Refused(404, message, "model", "model_not_found")
            if model.held is not None:
                self.forget(name)
                raise Refused(403, f"The model `{name}` is held: {model.held}", "model", "model_held")
            return model.base, Adapter(model.id, model.org_id, model.place), policy

    def _located(self, place: str) -> tuple[str, Path | None]:
        """Return the weights that a policy's model stands for, and the adapter on them, where it is one: an aligned model often is.

        A model that was fine-tuned from there holds the whole way from the weights in its own adapter.
        """
        from titer.models import refuse_quantised, split_adapter

        with _loading(place):
            base, adapter = split_adapter(place)
            refuse_quantised(base, NOT_QUANTISED)
            return base, adapter

    def _text(self, place: str) -> _Text:
        with self._lock:
            if place not in self._texts:
                from titer.models import Template, load_config, load_tokenizer

                with _loading(place):
                    config, tokenizer = load_config(place).get_text_config(), load_tokenizer(place)
                context = getattr(config, "max_position_embeddings", None)
                context = context if isinstance(context, int) and context > 0 else None
                self._texts[place] = _Text(Template(tokenizer), context, threading.Lock())
            return self._texts[place]

    def _answering(self, policy: ChatPolicy) -> Answering:
        """Return what answers by a policy; another one begins when it names another server."""
        bounds = Bounds(policy.answers, policy.waiting, policy.adapters, policy.bases)
        with self._lock:
            if self._engine is None or self._engine[0] != policy.forward:
                if self._engine is not None:
                    # Whom it answers now is told that it stops.
                    threading.Thread(target=self._engine[1].close, daemon=True).start()
                made: Answering
                if policy.forward is None:
                    from titer.service.chat.engine import Engine

                    made = Engine(self._fetch, self._unusable, bounds)
                else:
                    from titer.service.chat.remote import Remote

                    made = Remote(
                        policy.forward, Path(policy.forward_folder or "."), self._fetch, self._unusable, bounds
                    )
                self._engine = policy.forward, made
            found = self._engine[1]
        found.bounds = bounds
        return found

    # -- artefacts -----------------------------------------------------------------------------------------------------

    def _fetch(self, adapter: Adapter, folder: Path) -> Path:
        """Copy an adapter out of the store; it lies there by itself, or in a folder of its own beside what it is served with."""
        if adapter.folder is not None:
            shutil.copytree(adapter.folder, folder, dirs_exist_ok=True)
        else:
            self._service.store.get_folder(adapter.place, folder)
        return folder if (folder / "adapter_config.json").is_file() else folder / "adapter"

    def _unusable(self, adapters: Sequence[Adapter]) -> list[str]:
        """Return the models of adapters that were deleted or held in the meantime."""
        gone = []
        with self._service.database.reading() as session:
            for adapter in adapters:
                if adapter.folder is not None:
                    continue
                model = Tenant(session, adapter.org, "server").find(Model, adapter.name)
                if model is None or model.held is not None:
                    gone.append(adapter.name)
        with self._lock:
            for name in gone:
                self._serving.pop(name, None)
        return gone

    def _serving_of(self, adapter: Adapter) -> Serving | None:
        """Return what a model is served with: `serving.json` in its folder of the store, or beside its folder here."""
        if adapter.folder is not None:
            return _read(adapter.folder, "The base model")
        with self._lock:
            if adapter.name in self._serving:
                self._serving.move_to_end(adapter.name)
                return self._serving[adapter.name]
        store, found = self._service.store, None
        if store.exists(f"{adapter.place}/{SERVING}"):
            with tempfile.TemporaryDirectory(prefix="titer-chat-") as folder:
                (Path(folder) / SERVING).write_bytes(store.read(f"{adapter.place}/{SERVING}"))
                found = _read(Path(folder) / "adapter", f"The model `{adapter.name}`")
        with self._lock:
            self._serving[adapter.name] = found
            while len(self._serving) > PROMPTS:
                self._serving.popitem(last=False)
        return found


def _read(adapter: Path, what: str) -> Serving | None:
    """Return what stands beside an adapter about how it is served."""
    try:
        found = read_serving(adapter)
        if found is not None and found.router is not None:
            raise TiterError("A router chooses its weights by the prompt, which no chat here does.")
        return found
    except TiterError as error:
        raise _unavailable(what, error) from error


@contextmanager
def _loading(place: str) -> Iterator[None]:
    """Tell the operator why a policy's model cannot be loaded, and the client that it cannot."""
    try:
        yield
    except TiterError as error:
        raise _unavailable("The base model", error, place) from error


def _unavailable(what: str, error: TiterError, place: str = "") -> Refused:
    """Return what a client is told of a model that cannot be used, with the number under which the log tells why."""
    number = new_id("request")
    logger.error("%s %s cannot be used (%s).", what, place, number, exc_info=error)
    message = f"{what} cannot be used: whoever runs the server finds the reason in its log ({number})."
    return Refused(503, message, "model", "model_unavailable")


def _prompt(text: _Text, messages: Sequence[Message], serving: Serving | None) -> list[int]:
    """Return the token ids of a conversation."""
    asked = [message._asdict() for message in served_messages(messages, serving.system if serving else "")]
    with text.lock:
        try:
            if serving:
                text.template.check_system(serving.system)
            return text.template.prompt_ids(asked)
        except TiterError as error:
            raise invalid("messages", str(error)) from error
        except StopIteration:  # texts that use up every letter that could stand for a control token
            raise invalid("messages", "The messages hold too many letters of the private use areas.") from None
