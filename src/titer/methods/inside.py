"""What a decoder makes of answer tokens on its way through the layers: the loss at each of them, and what its MLPs put out.

Everything is read by hooks while the model runs, and computed there where it needs weights (the final norm, the output head),
since only then a sharded model holds them whole. The hooks are gone when the pass is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titer.errors import TiterError
from titer.packing.alone import first_apart
from titer.packing.batches import PackedBatch
from titer.packing.losses import LinearNLL, token_nll
from titer.packing.states import layer_stack

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
"""What the norm behind the last layer is called in models of the library."""


class Inside:
    """The inside of a decoder: its layers, the norm behind them, and its output head.

    Args:
        bare: A causal language model of transformers, without a wrapper; its layers may be adapted.

    Attributes:
        layers: The layers, first to last.

    Raises:
        TiterError: For a model that is built otherwise.
    """

    def __init__(self, bare: Any) -> None:
        self.layers: list[Any] = layer_stack(bare)
        norms = [each for name, each in bare.get_decoder().named_children() if name in NORMS]
        self.head: Any = bare.get_output_embeddings()
        if not self.layers or len(norms) != 1 or self.head is None:
            raise TiterError(
                f"{type(bare).__name__} is not built as one stack of layers, a norm and an output head, so there is no loss "
                "at each layer to compute.",
                "Use a decoder such as Llama, Qwen, Gemma, Mistral or SmolLM.",
            )
        self.norm: Any = norms[0]
        self._checked = False

    def layer_nll(self, model: Any, batch: PackedBatch, renormed: bool = False) -> Tensor:
        """Return the loss of every supervised token at every layer: its states, normed, through the output head.

        The first row is of the embedding, the last the model's own loss, of the last layer. One forward pass.

        Args:
            model: The model, in whatever wrapper it is trained.
            batch: What to run.
            renormed: Also return, before the last row, the loss of the last layer's states normed twice: `hidden_states[-1]` of
                the library is normed already, and released code norms it again (arXiv 2405.14577, 2505.12186).

        Returns:
            `(layers + 1, N)` losses in nats, or one row more.

        Raises:
            TiterError: For a model that does more behind its last layer than norm and head, so that losses at other layers
                would not be comparable with its own.
        """
        entering: dict[int, Tensor] = {}
        found: list[Tensor] = []
        own: list[Tensor] = []
        last: list[Tensor] = []

        def enter(place: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            # Where activations are recomputed, the last layers may be run again; what counts is the first time.
            entering.setdefault(place, args[0] if args else named["hidden_states"])

        def leave() -> None:
            normed = _predicting(last[0], batch)
            if not self._checked:
                own.append(self._nll(normed, batch["targets"]).detach())
            for place in range(len(self.layers)):
                found.append(self._nll(self.norm.forward(_predicting(entering[place], batch)), batch["targets"]))
            if renormed:
                found.append(self._nll(self.norm.forward(normed), batch["targets"]))

        with ExitStack() as hooks:
            for place, layer in enumerate(self.layers):

                def before(module: Any, args: Any, named: Any, place: int = place) -> None:
                    enter(place, args, named)

                hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(self.norm.register_forward_hook(lambda module, args, output: last.append(output)).remove)
            # FSDP2 may shard the head by itself; it has gathered its weights, and those of the norm, when the head is entered.
            hooks.callback(self.head.register_forward_pre_hook(lambda module, args: leave()).remove)
            final, _ = token_nll(model, batch)
        if own and first_apart(own[0], final.detach(), _coarsest(own[0], self.head)):
            raise TiterError(
                "The model's loss is not that of its last states through its output head: it scales or caps the logits behind "
                "it, and losses at other layers would not be comparable.",
                "Use a model without logit scaling or soft-capping.",
            )
        self._checked = True
        return torch.stack([*(nll.to(final.dtype) for nll in found), final])

    def _nll(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the losses `(N,)` of normed states `(N, hidden_size)`; of a frozen linear head never with all logits at once."""
        frozen = not any(weight.requires_grad for weight in self.head.parameters())
        if isinstance(self.head, torch.nn.Linear) and frozen:
            loss: Tensor = LinearNLL.apply(states, self.head.weight, self.head.bias, targets)
            return loss
        # Not called as a module: FSDP2 counts calls, and would free the weights after the first one's backward pass.
        logits = self.head.forward(states[None])[0]
        precise = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return F.cross_entropy(precise, targets, reduction="none")

    @contextmanager
    def mlp_outputs(self) -> Iterator[list[Tensor]]:
        """Yield a list that a forward pass inside of the block fills with what the MLP of each layer put out, first to last.

        Raises:
            TiterError: For layers without a module `mlp`.
        """
        outputs: dict[int, Tensor] = {}
        found: list[Tensor] = []
        if not all(hasattr(layer, "mlp") for layer in self.layers):
            raise TiterError(
                f"Layers of the kind {type(self.layers[0]).__name__} have no `mlp`, whose outputs are asked for.",
                "Use a decoder such as Llama, Qwen, Gemma, Mistral or SmolLM.",
            )
        with ExitStack() as hooks:
            for place, layer in enumerate(self.layers):

                def after(module: Any, args: Any, output: Any, place: int = place) -> None:
                    # A mixture of experts may also return what its router said.
                    outputs.setdefault(place, output[0] if isinstance(output, tuple) else output)
                    if len(outputs) == len(self.layers) and not found:
                        found.extend(outputs[number] for number in range(len(self.layers)))

                hooks.callback(layer.mlp.register_forward_hook(after).remove)
            yield found


def at_tokens(states: Tensor, batch: PackedBatch, places: Tensor) -> Tensor:
    """Return states `(R, L, features)` of a pass at some tokens, `(len(places), features)`, numbered as `predict_from` does."""
    # Virtual tokens, of prompt tuning, stand before the rows, so places count from the end.
    return states[:, -batch["input_ids"].shape[1] :].flatten(0, 1)[places]


def _predicting(states: Tensor, batch: PackedBatch) -> Tensor:
    """Return the states of a pass where a supervised token is predicted, `(N, features)`."""
    return at_tokens(states, batch, batch["predict_from"])


def _coarsest(nll: Tensor, head: Any) -> torch.dtype:
    """Return the precision that losses of a head may differ by."""
    autocast = torch.get_autocast_dtype(nll.device.type) if torch.is_autocast_enabled(nll.device.type) else None
    coarse = {torch.bfloat16, torch.float16} & {autocast, *(weight.dtype for weight in head.parameters())}
    return torch.bfloat16 if coarse else nll.dtype


def differing(answer: Sequence[int], refusal: Sequence[int]) -> list[bool]:
    """Say of every token of an answer whether the refusal of the same prompt has another token at its place, or none."""
    return [place >= len(refusal) or token != refusal[place] for place, token in enumerate(answer)]
