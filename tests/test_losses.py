"""Losses by branch, likelihood ratios and weighted reductions on numbers worked out by hand."""

import copy

import pytest
import references as ref
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import titer.packing.losses
from titer.errors import TiterError
from titer.packing.attention import use_packed_attention
from titer.packing.batches import Sample, pack, pad
from titer.packing.losses import (
    FusedHead,
    LinearNLL,
    branch_nll,
    fuse_head,
    log_likelihood_ratio,
    token_nll,
    weighted_parts,
)


def test_branch_nll_by_hand():
    nll = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    sums, counts = branch_nll(nll, torch.tensor([0, 0, 2, 2]), 4)
    assert sums.tolist() == [3.0, 0.0, 12.0, 0.0]
    assert counts.tolist() == [2, 0, 2, 0]
    (sums * torch.tensor([1.0, 1.0, 10.0, 1.0])).sum().backward()
    assert nll.grad.tolist() == [1.0, 1.0, 10.0, 10.0]


def test_ratio_by_hand():
    # Answer: 2 tokens of probability e⁻³ each; refusal: 4 tokens of e⁻² each.
    values = [torch.tensor([number]) for number in (6.0, 2.0, 8.0, 4.0)]
    assert log_likelihood_ratio(*values, "sum").tolist() == [2.0]  # log(e⁻⁶ / e⁻⁸)
    assert log_likelihood_ratio(*values, "mean").tolist() == [-1.0]


def test_weighted_parts_by_hand():
    nll, tokens, weights = torch.tensor([6.0, 2.0]), torch.tensor([3, 1]), torch.tensor([0.25, 0.75])
    assert [part.item() for part in weighted_parts(nll, tokens, weights, "token")] == [3.0, 1.5]
    assert [part.item() for part in weighted_parts(nll, tokens, weights, "sample")] == [2.0, 1.0]


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_no_gradient_flows_through_weights(reduction):
    weights = torch.tensor([0.25, 0.75], requires_grad=True)
    nll = torch.tensor([6.0, 2.0], requires_grad=True)
    numerator, denominator = weighted_parts(nll, torch.tensor([3, 1]), weights, reduction)
    (numerator / denominator).backward()
    assert weights.grad is None
    assert nll.grad is not None


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 20), st.floats(0.0625, 1)), min_size=2, max_size=8),
    st.integers(1, 7),
    st.sampled_from(["token", "sample"]),
)
@settings(max_examples=100, deadline=None)
def test_parts_of_micro_batches_add_up(samples, cut, reduction):
    nll, tokens, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*samples))
    whole = weighted_parts(nll, tokens, weights, reduction)
    parts = [weighted_parts(nll[s], tokens[s], weights[s], reduction) for s in (slice(None, cut), slice(cut, None))]
    for number in range(2):
        assert sum(part[number] for part in parts).item() == pytest.approx(whole[number].item(), rel=1e-9, abs=1e-12)


def test_equal_weights_are_plain_means():
    nll, tokens = torch.tensor([6.0, 2.0, 1.0]), torch.tensor([3, 1, 2])
    for factor in (1.0, 1 / 3):
        weights = torch.full((3,), factor)
        numerator, denominator = weighted_parts(nll, tokens, weights, "token")
        assert (numerator / denominator).item() == pytest.approx(9 / 6)
        numerator, denominator = weighted_parts(nll, tokens, weights, "sample")
        assert (numerator / denominator).item() == pytest.approx((2 + 2 + 0.5) / 3)


def test_unknown_names_are_errors():
    one = torch.ones(1)
    with pytest.raises(TiterError, match="Unknown ratio: `summ`"):
        log_likelihood_ratio(one, one, one, one, "summ")
    with pytest.raises(TiterError, match="Unknown reduction: `tokens`"):
        weighted_parts(one, one, one, "tokens")


def test_likelihoods_are_computed_in_float32_at_least(tiny):
    """In bfloat16 a loss of 6 nats is known to 1/32 only; the sum over an answer would be worthless."""
    use_packed_attention(tiny)
    batch = pack([Sample([1, 2, 3], [[4, 5, 2]])])
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        nll, output = token_nll(tiny.to(dtype), batch)
        assert output.logits.dtype == dtype
        assert nll.dtype == expected


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [3, 256])
def test_fused_loss_and_its_gradient_are_those_of_the_logits(monkeypatch, chunk, bias):
    monkeypatch.setattr(titer.packing.losses, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(10, 8, dtype=torch.float64, requires_grad=True)
    weight, targets = torch.randn(20, 8, dtype=torch.float64), torch.randint(20, (10,))
    offset = torch.randn(20, dtype=torch.float64) if bias else None
    factors = torch.linspace(-1, 2, 10, dtype=torch.float64)
    expected = F.cross_entropy(F.linear(hidden, weight, offset), targets, reduction="none")
    (wanted,) = torch.autograd.grad((factors * expected).sum(), hidden)
    ours = LinearNLL.apply(hidden, weight, offset, targets)
    (gradient,) = torch.autograd.grad((factors * ours).sum(), hidden)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-13)


def test_fused_loss_of_half_precision_is_computed_in_single():
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 8).bfloat16(), torch.randn(20, 8).bfloat16()
    targets = torch.randint(20, (4,))
    expected = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    ours = LinearNLL.apply(hidden, weight, None, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("lay_out", [pack, pad])
def test_a_fused_head_gives_losses_to_token_nll_and_logits_to_everybody_else(tiny, lay_out):
    tiny.requires_grad_(False).double()
    use_packed_attention(tiny)
    batch = lay_out([Sample([1, 5, 6], [[7, 2]]), Sample([1, 5, 8], [[9, 9, 2]])])
    ids = torch.tensor([[1, 5, 6]])
    expected, logits = token_nll(tiny, batch)[0], tiny(input_ids=ids).logits
    fuse_head(tiny)
    assert isinstance(tiny.lm_head, FusedHead)
    fused, output = token_nll(tiny, batch)
    assert output.logits.shape == (1, 5, 1)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-12)
    assert torch.equal(tiny(input_ids=ids).logits, logits)
    assert isinstance(copy.deepcopy(tiny).lm_head, FusedHead)
    assert sorted(tiny.state_dict()) == sorted(copy.deepcopy(tiny).state_dict())


def test_a_fused_head_that_is_trained_itself_gets_its_gradient(tiny):
    use_packed_attention(tiny)
    plain = copy.deepcopy(tiny.double())
    fuse_head(tiny)
    batch = pack([Sample([1, 5, 6], [[7, 2]])])
    for model in (plain, tiny):
        token_nll(model, batch)[0].sum().backward()
    torch.testing.assert_close(tiny.lm_head.weight.grad, plain.lm_head.weight.grad)


def test_an_adapter_on_a_fused_head_gets_its_logits(tiny):
    """As when a model was audited, which fuses its head, and is then trained with an adapter on that."""
    from peft import LoraConfig, get_peft_model

    use_packed_attention(tiny)
    plain = copy.deepcopy(tiny)
    fuse_head(tiny)
    batch = pack([Sample([1, 5, 6], [[7, 2]])])
    losses = []
    for model in (plain, tiny):
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
        assert not fuse_head(adapted.get_base_model())
        losses.append(token_nll(adapted, batch)[0])
    assert torch.equal(*losses)


def test_a_trained_bias_beside_a_frozen_head_gets_its_gradient(tiny):
    tiny.double().requires_grad_(False)
    tiny.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, tiny.config.vocab_size, dtype=torch.float64))
    use_packed_attention(tiny)
    alone = copy.deepcopy(tiny)
    alone.set_attn_implementation("sdpa")
    fuse_head(tiny)
    assert isinstance(tiny.lm_head, FusedHead)
    pairs = [([1, 5, 6], [7, 2]), ([1, 5, 8], [9, 9, 2])]
    token_nll(tiny, pack([Sample(prompt, [answer]) for prompt, answer in pairs]))[0].mean().backward()
    (expected,) = ref.gradient(alone, ref.mean_nll(alone, pairs))
    assert tiny.lm_head.bias.grad is not None
    torch.testing.assert_close(tiny.lm_head.bias.grad, expected, rtol=0, atol=1e-12)


def test_logits_that_are_changed_behind_the_head_are_left_alone(tiny):
    original = type(tiny).forward

    class Scaled(type(tiny)):
        def forward(self, *args, **kwargs):
            output = original(self, *args, **kwargs)
            output.logits = output.logits / 3
            return output

    tiny.__class__ = Scaled
    fuse_head(tiny)
    assert type(tiny.lm_head) is torch.nn.Linear
