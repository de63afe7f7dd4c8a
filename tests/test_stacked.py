"""Grouped products of many adapters compute what each adapter's own products compute."""

import pytest
import torch

from titer.infer import stacked
from titer.infer.stacked import Seating, StackedLoRA

SIZES = {0: 8, 1: 3, 3: 16}
"""Ranks by owner; owner 2 has no adapter."""


def layer():
    torch.manual_seed(0)
    base = torch.nn.Linear(16, 24).requires_grad_(False)
    made = StackedLoRA(base, Seating())
    for owner, rank in SIZES.items():
        down, up = (torch.randn(*shape, requires_grad=True) for shape in ((rank, 16), (24, rank)))
        made.adapters[owner] = (down, up, 0.3 + owner)
    return made


def outcome(made, x):
    output = made(x)
    weights = [tensor for down, up, _ in made.adapters.values() for tensor in (down, up)]
    upstream = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    return [output, *torch.autograd.grad(output, [x, *weights], upstream, materialize_grads=True)]


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_grouped_products_are_those_of_each_owner(monkeypatch, way):
    made = layer()
    if way == "packed":
        made.seating.side_by_side([(0, 5), (3, 1), (2, 4), (1, 6)])
        x = torch.randn(1, 16, 16, requires_grad=True)
    else:
        made.seating.by_row([3, 3, 2, 0])
        x = torch.randn(4, 5, 16, requires_grad=True)
    expected = outcome(made, x)
    monkeypatch.setattr(stacked, "grouped_precision", lambda x, adapters: torch.float32)
    for found, wanted in zip(outcome(made, x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(stacked, "grouped_precision", lambda x, adapters: torch.bfloat16)
    for found, wanted in zip(outcome(made, x), expected, strict=True):
        assert (found - wanted).norm() <= 0.02 * wanted.norm()


def test_on_a_cpu_each_owner_has_its_own_products(monkeypatch):
    made = layer()
    made.seating.by_row([0, 3])
    monkeypatch.setattr(stacked, "grouped", lambda *given: pytest.fail("grouped"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made(torch.randn(2, 5, 16))
