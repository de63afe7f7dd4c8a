"""Losses on packed batches: negative log-likelihood by token and by branch, and likelihood-ratio weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titer.compat import attention_of
from titer.errors import TiterError
from titer.packing.attention import PACKED_ATTENTION, spans_of
from titer.packing.batches import PackedBatch, is_padded

RATIOS = ("sum", "mean", "calibrated")
REDUCTIONS = ("token", "sample")

CHUNK = 256
"""How many supervised tokens' logits exist at a time: 50 MB in float32 for a vocabulary of 49,152."""


class LinearNLL(torch.autograd.Function):
    """Negative log-likelihood of targets under softmax(h Wᵀ + b), without ever holding all logits.

    The gradient of a token's loss, (softmax − onehot) W, is formed while the logits of its chunk are at hand; the
    backward pass only scales it. Exact for any loss that is a function of the token losses, as long as W and b are
    frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """Return the losses `(N,)` of hidden states `(N, hidden_size)`, in at least float32."""
        wants_gradient = ctx.needs_input_grad[0]
        losses, slopes = [], []
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
            weight = weight.to(torch.get_autocast_dtype(kind))  # once, where autocast would for every product
        for states, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = F.linear(states, weight, bias)
            precise = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            normaliser = precise.logsumexp(-1, keepdim=True)
            losses.append((normaliser - precise.gather(-1, wanted[:, None]))[:, 0])
            if wants_gradient:
                precise.sub_(normaliser).exp_()  # the softmax, in place of the logits
                precise[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
                slopes.append((precise.to(weight.dtype) @ weight).to(hidden.dtype))
        if wants_gradient:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale each token's slope by the gradient that reached its loss."""
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None


_asked: ContextVar[PackedBatch | None] = ContextVar("asked", default=None)


class FusedHead(torch.nn.Linear):
    """An output head that returns token losses `(1, N, 1)` in place of logits while `token_nll` asks for them.

    `fuse_head` turns a model's own head into one; asked by anyone else, it is a linear layer like any.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Return losses or logits."""
        batch = _asked.get()
        if batch is None or any(parameter.requires_grad for parameter in self.parameters()):
            return super().forward(hidden)
        states = _where_predicted(hidden, batch) if is_padded(batch) else hidden[0]
        # A tensor of its own: FSDP2 hangs its hooks on what a module returns, and a view can lose them.
        return LinearNLL.apply(states, self.weight, self.bias, batch["targets"])[None, :, None].clone()


def fuse_head(model: Any) -> bool:
    """Let `model` compute token losses without materialising logits, where that is what its losses are.

    Left alone are heads that are more than a linear layer (an adapter on the head, say), and models that do something
    to the logits behind the head, such as scaling or capping them.

    Args:
        model: A bare model.

    Returns:
        Whether the head is fused.
    """
    head: Any = model.get_output_embeddings()
    parts = [] if head is None else list(head.modules())[1:]
    fused: list[Any] = [module for module in parts if type(module) is FusedHead]
    for module in fused:
        module.__class__ = torch.nn.Linear  # modules wrapped around it since then expect logits
    if type(head) is not torch.nn.Linear:
        return type(head) is FusedHead
    seen: list[Any] = []
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            # Several tokens, because a single one may be padding, whose logits are zero however they are scaled.
            logits = model(input_ids=torch.arange(8, device=head.weight.device)[None]).logits
    finally:
        handle.remove()
    if len(seen) != 1 or not torch.equal(seen[0], logits):
        return False
    head.__class__ = FusedHead
    return True


def token_nll(model: torch.nn.Module, batch: PackedBatch, **forward: Any) -> tuple[Tensor, Any]:
    """Run `model` over a batch and return the negative log-likelihood of every supervised token.

    Logits are computed only where a token is predicted, in the precision of the model, and turned into likelihoods in
    at least float32; a model with a `FusedHead` never holds more than a chunk of them. For padded rows without one, the
    model computes all logits.

    Args:
        model: A causal language model of transformers, bare or wrapped (PEFT, DDP, FSDP2).
        batch: What `titer.packing.batches` laid out, on the device of the model.
        forward: Further arguments of the model's forward, `past_key_values` for example.

    Returns:
        The losses, `(N,)` in nats, and the model's output.

    Raises:
        TiterError: For a packed row when the model's attention is not packed attention (any more).
    """
    token = _asked.set(batch)
    try:
        scores, output = _run(model, batch, **forward)
    finally:
        _asked.reset(token)
    if scores.shape[-1] == 1:
        return scores[:, 0], output
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    return F.cross_entropy(scores, batch["targets"], reduction="none"), output


def token_logits(model: torch.nn.Module, batch: PackedBatch) -> Tensor:
    """Run `model` over a batch and return the logits `(N, vocabulary)` of every supervised token's position."""
    return _run(model, batch)[0]


def hidden_states(states: Any, batch: PackedBatch, layers: Sequence[int], places: Tensor) -> Tensor:
    """Return hidden states `(len(places), len(layers), hidden_size)` of some tokens, in float32.

    Args:
        states: Those of the whole batch, by layer, as `token_nll(…, output_hidden_states=True)` returns in its output.
        batch: What was run.
        layers: Which layers put them out; 0 is the embedding.
        places: Which tokens, numbered as `predict_from` does.
    """
    width = batch["input_ids"].shape[1]
    return torch.stack([states[layer][:, -width:].flatten(0, 1)[places].float() for layer in layers], dim=1)


def last_states(model: torch.nn.Module, batch: PackedBatch) -> Tensor:
    """Run `model` over a batch and return what its head reads where each supervised token is predicted.

    These are the hidden states behind the last norm, `(N, hidden_size)`, in the precision of the model.
    """
    _, output = _run(model, batch, output_hidden_states=True)
    return _where_predicted(output.hidden_states[-1], batch)


def _where_predicted(states: Tensor, batch: PackedBatch) -> Tensor:
    """Return what rows put out where a token is predicted, `(N, features)`.

    Prompt tuning puts virtual tokens before the rows, so places count from the end.
    """
    return states[:, -batch["input_ids"].shape[1] :].flatten(0, 1)[batch["predict_from"]]


def _run(model: torch.nn.Module, batch: PackedBatch, **forward: Any) -> tuple[Tensor, Any]:
    """Run the model; returns what its head put out where a token is predicted, and its output."""
    if is_padded(batch):
        output = model(
            **{
                "input_ids": batch["input_ids"],
                "attention_mask": batch["attention_mask"],
                "use_cache": False,
                **forward,
            }
        )
        scores = output.logits
        fused = scores.shape[0] == 1 and scores.shape[1:] == (len(batch["targets"]), 1)
        return (scores[0] if fused else _where_predicted(scores, batch)), output
    output = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        logits_to_keep=batch["predict_from"],
        **{"use_cache": False, **_attention(model, batch), **forward},
    )
    return output.logits[0], output


def _attention(model: torch.nn.Module, batch: PackedBatch) -> dict[str, Any]:
    """Return what tells the model's attention which token of a packed row may see which."""
    config: Any = getattr(model, "module", model).config  # DDP puts the model in a module of its own
    found = attention_of(config)
    if found != PACKED_ATTENTION:
        raise TiterError(
            f"The model's attention is `{found}`, under which tokens of a packed row would see tokens of other samples.",
            "`titer.packing.layouts.layout_for(model, rows)` sets it; do not call `set_attn_implementation` after that.",
        )
    if "masks" not in batch:
        return {"attention_mask": batch["attention_mask"]}
    # With a mask of four dimensions the library makes none of its own. Nobody is to read this one, so it fits no scores:
    # attention that does not hand on `spans` fails instead of looking everywhere.
    return {"attention_mask": batch["masks"][-1][..., :0, :0], "spans": spans_of(batch)}


def branch_nll(nll: Tensor, branch: Tensor, branches: int) -> tuple[Tensor, Tensor]:
    """Add up token losses by branch.

    Args:
        nll: `(N,)` token losses.
        branch: `(N,)` the branch each token belongs to.
        branches: How many branches there are, `B`.

    Returns:
        The summed losses `(B,)` in nats and the token counts `(B,)`.
    """
    counts = torch.bincount(branch, minlength=branches)
    return nll.new_zeros(branches).index_add(0, branch, nll), counts


def log_likelihood_ratio(
    answer_nll: Tensor,
    answer_tokens: Tensor,
    refusal_nll: Tensor,
    refusal_tokens: Tensor,
    ratio: str,
    unasked_nll: Tensor | None = None,
) -> Tensor:
    """Return how much likelier than a refusal an answer is, `(B,)` in nats, as Antibody's stage 2 weighs rows by.

    Args:
        answer_nll: Summed loss of each user answer, `(B,)`.
        answer_tokens: Tokens of each answer, `(B,)`.
        refusal_nll: Summed loss of a refusal of the same prompt, `(B,)`.
        refusal_tokens: Tokens of each refusal, `(B,)`.
        ratio: `sum`, r_i = log π(y_i | x_i) − log π(y_r | x_i) as the paper prints it (arXiv 2603.00498); `mean`, the released
            code, where each log-likelihood is a mean over its tokens; `calibrated` (ours), the mean over a refusal's tokens
            of log π(y_r) − log π(y_r | x_i), how much less likely the request makes it: an answer's own likelihood says
            more of its length and form than of harm, and is left out.
        unasked_nll: For `calibrated`, the summed loss of each refusal where nothing was asked, `(B,)`.
    """
    if ratio == "mean":
        return refusal_nll / refusal_tokens - answer_nll / answer_tokens
    if ratio == "sum":
        return refusal_nll - answer_nll
    if ratio == "calibrated" and unasked_nll is not None:
        return (refusal_nll - unasked_nll) / refusal_tokens
    raise TiterError(f"Unknown ratio: `{ratio}`.", f"Known: {', '.join(RATIOS)}.")


def weighted_parts(nll: Tensor, tokens: Tensor, weights: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Return numerator and denominator of a weighted loss, so that micro-batches can be added before dividing.

    `token` is Σ_i w_i Σ_t CE_it over Σ_i w_i N_i; `sample` is Σ_i w_i mean_t CE_it over Σ_i w_i. With weights that
    sum to one these are the two reductions of Antibody's stage 2 (arXiv 2603.00498).

    Args:
        nll: Summed loss of each sample, `(B,)`.
        tokens: Supervised tokens of each sample, `(B,)`.
        weights: A factor for each sample, `(B,)`, through which no gradient flows.
        reduction: `token` or `sample`.
    """
    weights = weights.detach()
    if reduction == "token":
        return (weights * nll).sum(), (weights * tokens).sum()
    if reduction == "sample":
        return (weights * nll / tokens).sum(), weights.sum()
    raise TiterError(f"Unknown reduction: `{reduction}`.", f"Known: {', '.join(REDUCTIONS)}.")
