"""Attention over a packed row in one kernel computes what the loop over samples computes; the kernel itself wants CUDA."""

import pytest
import torch

from titer.packing import varlen
from titer.packing.attention import packed_attention, spans_of
from titer.packing.batches import Sample, join, pack
from titer.packing.varlen import attend, distance, longhand

SAMPLES = [
    Sample([1, 2, 3, 4], [[5, 6, 7], [8], [9, 10]]),
    Sample([1, 2, 11], [[12]]),
    Sample([1, 2, 13, 14, 15], [[16, 17], [18, 19, 20]]),
]


def row(samples, seed):
    made = torch.Generator().manual_seed(seed)
    total = samples["input_ids"].shape[1]
    shape = (1, 2, total, 4)
    return [torch.randn(shape, generator=made, dtype=torch.float64).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize(
    "batch",
    [pack(SAMPLES), pack(SAMPLES, share_prefix=False), pack(SAMPLES[:1]), join([pack(SAMPLES), pack(SAMPLES[1:])])],
    ids=["prefix", "no prefix", "one", "joined"],
)
def test_pieces_attend_as_samples_do(batch, window):
    spans = spans_of(batch)
    heads = row(batch, 0)
    expected, _ = packed_attention(None, *heads, None, spans=spans, sliding_window=window, scaling=0.3)
    found = attend(longhand, *heads, spans.pieces, 0.3, window)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, heads, upstream), torch.autograd.grad(expected, heads, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def wrong(*heads, scale, window_size):
    return longhand(*heads, scale=scale, window_size=(-1, 0))  # which forgets windows


def test_a_kernel_is_tried_before_it_is_used(caplog):
    here = torch.device("cpu")
    assert distance(longhand, here, torch.float64, 2, 8) == 0
    assert distance(longhand, here, torch.bfloat16, 2, 8) < 8 * torch.finfo(torch.bfloat16).eps
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert varlen._holds(longhand, here, torch.bfloat16, 2, 8)
    assert not varlen._holds(wrong, here, torch.bfloat16, 2, 8)
    assert "sample by sample" in caplog.text


def test_without_cuda_the_loop_stays():
    query = torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16)
    assert varlen.kernel_for(query, torch.bfloat16) is None
