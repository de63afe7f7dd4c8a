"""Frozen weights that are cast once give what autocast gives, to the bit, and nothing stays behind."""

import copy

import pytest
import torch

from titer.packing.casts import cast_once


def passed(model, ids):
    """The logits of a row under autocast, and the gradient of a loss by its embedded tokens."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs_embeds=embedded).logits
    logits.float().logsumexp(-1).sum().backward()
    return logits.detach(), embedded.grad


def same(found, wanted):
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.fixture
def frozen(tiny):
    return tiny.float().requires_grad_(False).eval()


def test_forward_and_backward_are_autocasts_to_the_bit(frozen):
    ids = torch.randint(0, 50, (2, 9))
    wanted = passed(frozen, ids)
    with cast_once(frozen):
        assert same(passed(frozen, ids), wanted)
        assert same(passed(frozen, ids), wanted)
        plainly = frozen(input_ids=ids).logits
    assert torch.equal(frozen(input_ids=ids).logits, plainly)  # outside of autocast in float32
    assert not any("forward" in vars(layer) for layer in frozen.modules())


def test_a_weight_that_changes_or_is_trained_is_cast_anew(frozen):
    ids = torch.randint(0, 50, (2, 9))
    layer = frozen.model.layers[0].mlp.down_proj
    with cast_once(frozen):
        before = passed(frozen, ids)
        with torch.no_grad():
            layer.weight.mul_(1.5)
        changed = passed(frozen, ids)
        assert not same(changed, before)
        layer.weight.data = layer.weight.data / 1.5 * 3
        other = passed(frozen, ids)
        layer.weight.requires_grad_(True)
        passed(frozen, ids)
        gradient = layer.weight.grad
    assert not same(other, changed)
    assert same(other, [one.detach() for one in passed(copy.deepcopy(frozen).requires_grad_(False), ids)])
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_nothing_stays_behind_after_an_error(frozen):
    with pytest.raises(RuntimeError, match="stop"), cast_once(frozen):
        raise RuntimeError("stop")
    assert not any("forward" in vars(layer) for layer in frozen.modules())
