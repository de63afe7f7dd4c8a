"""Attention in 16 bits on CPUs: as exact as the fused kernel, outputs and gradients, and nothing is kept beyond its inputs."""

import pytest
import torch
import torch.nn.functional as F

from titer.packing import attention, halves
from titer.packing.attention import packed_attention, spans_of
from titer.packing.batches import Sample, pack
from titer.packing.halves import attend, takes

SAMPLES = [
    Sample([1, 2, 3, 4], [[5, 6, 7], [8], [9, 10]]),
    Sample([1, 2, 11], [[12]]),
    Sample([1, 2, 13, 14, 15], [[16, 17], [18, 19, 20]]),
]


def heads_of(tokens, seed=0, heads=3, size=16):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn((1, heads, tokens, size), generator=made).bfloat16() for _ in range(4)]


def outputs_and_gradients(compute, tensors, upstream):
    leaves = [x.clone().requires_grad_() for x in tensors]
    output = compute(*leaves)
    return [output, *torch.autograd.grad(output, leaves, upstream)]


def apart(found, wanted):
    """The relative distance of each tensor from the definition in float64."""
    return [float((one.detach().double() - two).norm() / two.norm()) for one, two in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("tokens", [1, 7, 45, 160])
def test_it_is_as_exact_as_the_fused_kernel(tokens, scale):
    *tensors, upstream = heads_of(tokens)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]

    def fused(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    def longhand(query, key, value):
        scores = query @ key.transpose(2, 3) * (16**-0.5 if scale is None else scale)
        return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value

    wanted = outputs_and_gradients(longhand, [x.double() for x in tensors], upstream.double())
    ours = outputs_and_gradients(lambda *x: attend(*x, mask, scale), tensors, upstream)
    theirs = outputs_and_gradients(fused, tensors, upstream)
    for own, other, size in zip(apart(ours, wanted), apart(theirs, wanted), [x.norm() for x in wanted], strict=True):
        if size:  # of a single token the scores have no gradient
            assert own < 0.004
            assert own < 1.5 * other + 1e-6


@pytest.mark.parametrize("window", [None, 3])
def test_a_packed_row_goes_through_it(window, monkeypatch):
    """With prefixes that samples share, where keys are more than queries, and under windows."""
    batch = pack(SAMPLES)
    spans = spans_of(batch)
    *tensors, _ = heads_of(batch["input_ids"].shape[1])
    upstream = torch.randn(1, tensors[0].shape[2], 3, 16, generator=torch.Generator().manual_seed(1))

    def packed(*x):
        return packed_attention(None, *x, None, spans=spans, sliding_window=window)[0]

    wanted = outputs_and_gradients(packed, [x.double() for x in tensors], upstream.double())
    calls = []
    monkeypatch.setattr(attention, "attend_in_halves", lambda *x: calls.append(x[0].dtype) or attend(*x))
    leaves = [x.float().requires_grad_() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):  # which is on while the loss goes backward, too
        output = packed(*leaves)
        found = [output, *torch.autograd.grad(output, leaves, upstream.bfloat16())]
    assert calls == [torch.bfloat16] * 4
    assert output.dtype == torch.bfloat16
    assert max(apart(found, wanted)) < 0.006


def test_long_samples_float32_and_dropout_go_through_the_library():
    query = torch.zeros(1, 2, 161, 8)
    assert takes(query[:, :, :160], query[:, :, :160], torch.bfloat16)
    assert takes(query[:, :, :100], query, torch.float16)
    assert not takes(query, query, torch.bfloat16)
    assert not takes(query[:, :, :9], query[:, :, :9], torch.float32)
    assert not takes(query[:, :, :9].to("meta"), query[:, :, :9].to("meta"), torch.bfloat16)
    spans = spans_of(pack(SAMPLES))
    *tensors, _ = heads_of(sum(spans.lengths))
    torch.manual_seed(0)
    one = packed_attention(None, *tensors, None, spans=spans, dropout=0.5)[0]
    other = packed_attention(None, *tensors, None, spans=spans)[0]
    assert not torch.equal(one, other)


def test_nothing_is_kept_for_the_way_back_but_its_inputs():
    *tensors, _ = heads_of(45)
    query, key, value = (x.requires_grad_() for x in tensors)
    mask = torch.ones(45, 45, dtype=torch.bool).tril()[None, None]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        halves.attend(query, key, value, mask)
    assert {id(x) for x in kept} <= {id(x) for x in (query, key, value, mask)}
