"""Vaccine's two passes one sample at a time: gradients by attention outputs, then by weights at perturbed outputs."""

import copy

import references as ref
import torch

from titer.compat import unbind_forward
from titer.packing.alone import bare_model


def copied(model):
    """A copy for longhand references, under the library's own attention (`eager` rounds to float32)."""
    model = copy.deepcopy(model)
    bare = bare_model(model)
    for one in (model, bare):
        unbind_forward(one)
    bare.set_attn_implementation("sdpa")
    return model.train()


def attention_of(model):
    """The attention modules of a Llama, with or without an adapter, by layer."""
    return [module for module in model.modules() if type(module).__name__ == "LlamaAttention"]


def slopes_of(model, pairs, layers):
    """By sample, the gradients of the mean token loss of all by the attention outputs of layers."""
    tokens, modules, slopes = sum(len(answer) for _, answer in pairs), attention_of(model), []
    for pair in pairs:
        seen = []
        hooks = [
            modules[layer].register_forward_hook(lambda m, i, out, seen=seen: seen.append(out[0])) for layer in layers
        ]
        loss = ref.sample_nll(model, *pair).sum() / tokens
        for hook in hooks:
            hook.remove()
        slopes.append(torch.autograd.grad(loss, seen))
    return slopes


def perturbed_gradient(model, pairs, rho, layers, parts=None):
    """∇_w f(w; e + ε); ε has one norm over all samples, or one over each of several parts of them."""
    slopes = slopes_of(model, pairs, layers)
    tokens, modules = sum(len(answer) for _, answer in pairs), attention_of(model)
    loss = torch.zeros((), dtype=torch.float64)
    for part in parts or [range(len(pairs))]:
        length = ref.norm([slope for sample in part for slope in slopes[sample]])
        for sample in part:
            hooks = [
                modules[layer].register_forward_hook(
                    lambda m, i, out, slope=slope, length=length: (out[0] + rho * slope / (length + 1e-7), *out[1:])
                )
                for layer, slope in zip(layers, slopes[sample], strict=True)
            ]
            loss = loss + ref.sample_nll(model, *pairs[sample]).sum() / tokens
            for hook in hooks:
                hook.remove()
    return ref.gradient(model, loss)
