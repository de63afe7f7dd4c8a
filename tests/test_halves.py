"""Attention in 16 bits on CPUs: as exact as the fused kernel, outputs and gradients, and nothing is kept beyond its inputs."""

import pytest
import torch

from titer.packing import attention
from titer.packing.attention import packed_attention, spans_of
from titer.packing.batches import Sample, join, pack
from titer.packing.halves import attend, computes

SAMPLES = [
    Sample([1, 2, 3, 4], [[5, 6, 7], [8], [9, 10]]),
    Sample([1, 2, 11], [[12]]),
    Sample([1, 2, 13, 14, 15], [[16, 17], [18, 19, 20]]),
]


def apart(found, wanted):
    """The relative distance of each tensor from the definition in float64."""
    return [float((one.detach().double() - two).norm() / two.norm()) for one, two in zip(found, wanted, strict=True)]


def definition(query, key, value, batch, scale, window):
    """The attention of each sample, written out in float64."""
    lengths, prefixes = [mask.shape[2] for mask in batch["masks"]], batch["prefixes"]
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    shared = query.shape[1] // key.shape[1]
    outputs = []
    for place, prefix in enumerate(prefixes):
        own = list(range(starts[place], starts[place] + lengths[place]))
        seen = [*(range(starts[prefix], starts[prefix] + lengths[prefix]) if prefix >= 0 else []), *own]
        mask = batch["masks"][place]
        if window is not None:
            positions = batch["position_ids"][0]
            mask = mask & (positions[own][:, None] - positions[seen][None, :] < window)
        keys, values = (x[:, :, seen].repeat_interleave(shared, dim=1) for x in (key, value))
        scores = query[:, :, own] @ keys.transpose(2, 3) * scale
        outputs.append(scores.masked_fill(~mask, float("-inf")).softmax(-1) @ values)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def samples(*lengths):
    return [Sample([7] * (length // 2), [[9] * (length - length // 2 + 1)]) for length in lengths]


BATCHES = {
    "branches and prefixes": pack(SAMPLES),
    "one token": pack([Sample([1], [[2]])], share_prefix=False),
    "of unlike length": pack(samples(20, 45, 4, 160, 33, 90, 47), share_prefix=False),
    "long ones among them": pack(samples(170, 20, 45, 200, 160), share_prefix=False),
    "joined": join([pack(SAMPLES), pack(samples(30, 31)), pack(SAMPLES[1:])]),
}


@pytest.mark.parametrize("window", [None, 5, 1000])
@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_it_is_as_exact_as_the_fused_kernel(batch, shared, window, monkeypatch):
    """Outputs and gradients of a packed row, with prefixes, windows and heads that share their keys."""
    spans, made = spans_of(batch), torch.Generator().manual_seed(0)
    tokens = batch["input_ids"].shape[1]
    sizes = ((2 * shared, 16), (2, 16), (2, 24))
    tensors = [torch.randn((1, heads, tokens, size), generator=made).bfloat16() for heads, size in sizes]
    upstream = torch.randn((1, tokens, 2 * shared, 24), generator=made).bfloat16()

    def packed(*x):  # the loss goes backward under autocast, too
        with torch.autocast("cpu", torch.bfloat16):
            output = packed_attention(None, *x, None, spans=spans, scaling=0.3, sliding_window=window)[0]
            return [output, *torch.autograd.grad(output, x, upstream.to(output.dtype))]

    exact = [x.double().requires_grad_() for x in tensors]
    output = definition(*exact, batch, 0.3, window)
    wanted = [output.detach(), *torch.autograd.grad(output, exact, upstream.double())]
    ours = packed(*(x.float().requires_grad_() for x in tensors))
    monkeypatch.setattr(attention, "computes", lambda *_: False)
    theirs = packed(*(x.float().requires_grad_() for x in tensors))
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for own, other, exactly in zip(apart(ours, wanted), apart(theirs, wanted), wanted, strict=True):
        if exactly.norm():  # of a single token the scores have no gradient
            assert own < 0.005
            assert own < max(1.5 * other, 0.0025)


def test_which_samples_are_computed_together():
    spans = spans_of(BATCHES["long ones among them"])
    groups = spans.groups(None)
    assert sorted(place for group in groups for place in group.places) == [2, 3, 5]  # the first is an empty prefix
    assert all(len(group.tokens) == sum(spans.lengths[place] for place in group.places) for group in groups)
    alike = spans_of(pack(samples(*[50] * 12), share_prefix=False)).groups(None)
    assert [len(group.places) for group in alike] == [12]
    many = spans_of(pack(samples(*[50] * 60), share_prefix=False)).groups(None)
    assert len(many) == 3  # no more scores at once than a cache holds
    unlike = spans_of(pack(samples(150, 10), share_prefix=False)).groups(None)
    assert len(unlike) == 2  # most of them would be padding


def test_other_precisions_accelerators_and_dropout_go_through_the_library():
    query = torch.zeros(1, 2, 9, 8)
    assert computes(query, torch.bfloat16)
    assert computes(query, torch.float16)
    assert not computes(query, torch.float32)
    assert not computes(query.to("meta"), torch.bfloat16)
    spans = spans_of(pack(SAMPLES))
    tensors = [torch.randn(1, 2, sum(spans.lengths), 8).bfloat16() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        assert packed_attention(None, *(x.double() for x in tensors), None, spans=spans)[0].dtype == torch.float64
    dropped = packed_attention(None, *tensors, None, spans=spans, dropout=0.5)[0]
    assert not torch.equal(dropped, packed_attention(None, *tensors, None, spans=spans)[0])


def test_what_is_no_number_stays_in_its_sample():
    """A fleet's attackers share packed rows, and one that diverges must not take the others along."""
    spans = spans_of(pack(samples(40, 45, 48), share_prefix=False))
    assert len(spans.groups(None)) == 1
    heads = [torch.randn(1, 2, sum(spans.lengths), 8).bfloat16() for _ in range(3)]
    place = spans.groups(None)[0].places[0]
    start = sum(spans.lengths[:place])
    broken = slice(start, start + spans.lengths[place])
    for tensor in heads:
        tensor[:, :, broken] = float("nan")
        tensor.requires_grad_()
    output = attend(*heads, spans.groups(None))
    found = [output, *(x.transpose(1, 2) for x in torch.autograd.grad(output, heads, torch.ones_like(output)))]
    for tensor in found:
        assert tensor[:, broken].isnan().all()
        assert torch.cat((tensor[:, : broken.start], tensor[:, broken.stop :]), dim=1).isfinite().all()


def test_nothing_is_kept_for_the_way_back_but_its_inputs():
    spans = spans_of(pack(samples(20, 45)))
    tensors = [torch.randn(1, 2, sum(spans.lengths), 8).bfloat16().requires_grad_() for _ in range(3)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attend(*tensors, spans.groups(None))
    assert [id(x) for x in kept] == [id(x) for x in tensors]
