"""A batch, packed or padded, computes exactly what its samples compute alone: logits, losses and gradients."""

import copy

import pytest
import references as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from titer.errors import TiterError
from titer.packing.attention import use_packed_attention
from titer.packing.batches import Sample, common_prefix_length, join, pack, pack_continuations, pad
from titer.packing.losses import branch_nll, token_nll
from titer.testing import same
from titer.train.rows import PackCollator

CASES = {
    "various": [
        Sample([1, 2, 3, 4], [[5, 6, 2]]),
        Sample([1, 2, 9], [[7, 2]]),
        Sample([1, 2, 3, 8, 9, 10], [[11, 12, 13, 2]]),
    ],
    "one-token completions": [Sample([1, 5, 6], [[2]]), Sample([1, 5, 7, 8], [[3]])],
    "one-token prompts": [Sample([1], [[4, 5, 2]]), Sample([1], [[6, 2]])],
    "one token each": [Sample([1], [[4]]), Sample([3], [[2]])],
    "identical prompts": [Sample([1, 2, 3], [[4, 2]]), Sample([1, 2, 3], [[5, 6, 2]]), Sample([1, 2, 3], [[4, 2]])],
    "identical samples": [Sample([1, 2, 3], [[4, 2]])] * 3,
    "single": [Sample([1, 2, 3], [[4, 5, 2]])],
    "single of two tokens": [Sample([1], [[2]])],
    "a prompt that begins another": [Sample([1, 2], [[9, 2]]), Sample([1, 2, 3, 4], [[5, 2]])],
    "nothing shared": [Sample([1, 2, 3], [[4, 2]]), Sample([5, 6], [[7, 2]])],
    "branches": [
        Sample([1, 2, 3], [[4, 5, 2], [6, 2], [7]]),
        Sample([1, 2, 8, 9], [[3, 2], [10, 11, 12, 2]]),
        Sample([1, 2], [[2]]),
    ],
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def samples(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["whole", "shared-prefix"])
def share_prefix(request):
    return request.param


LAYOUTS = {"whole": lambda samples: pack(samples, share_prefix=False), "shared-prefix": pack, "padded": pad}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def lay_out(request):
    return request.param


@pytest.fixture
def model(tiny):
    """Float64, with grouped-query attention: four heads on two key-value heads."""
    model = tiny.double().eval()
    assert model.config.num_attention_heads == 2 * model.config.num_key_value_heads
    use_packed_attention(model)
    return model


@pytest.fixture
def alone(tiny):
    """The same model, to run each sample alone as the library does it."""
    model = copy.deepcopy(tiny).double().eval()
    model.set_attn_implementation("sdpa")
    return model


def paths(samples):
    return [(list(sample.prompt), list(completion)) for sample in samples for completion in sample.branches]


def test_losses_and_gradients_are_those_alone(model, alone, samples, lay_out):
    nll, _ = token_nll(model, lay_out(samples))
    expected = torch.cat([ref.sample_nll(alone, *path) for path in paths(samples)])
    assert torch.allclose(nll, expected, rtol=0, atol=1e-12)
    # Not only the mean: weights that tell every token apart.
    weights = torch.linspace(0.1, 1, len(nll), dtype=torch.float64)
    ours = ref.gradient(model, (weights * nll).sum())
    assert ref.relative_error(ours, ref.gradient(alone, (weights * expected).sum())) < 1e-12


def test_packed_logits_are_those_of_a_padded_batch(model, alone, samples, share_prefix):
    """Right padding, as trainers usually do it."""
    rows = paths(samples)
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.tensor(
        [prompt + completion + [0] * (width - len(prompt) - len(completion)) for prompt, completion in rows]
    )
    mask = torch.tensor([[1] * len(p + c) + [0] * (width - len(p + c)) for p, c in rows])
    with torch.no_grad():
        padded = alone(input_ids=ids, attention_mask=mask, use_cache=False).logits
        _, output = token_nll(model, pack(samples, share_prefix))
    expected = torch.cat(
        [
            padded[number, len(prompt) - 1 : len(prompt) + len(completion) - 1]
            for number, (prompt, completion) in enumerate(rows)
        ]
    )
    assert output.logits.shape[1] == len(expected), "logits only where a token is supervised"
    assert torch.allclose(output.logits[0], expected, rtol=0, atol=1e-11)


def test_joined_batches_are_what_each_is_alone(model, samples, lay_out):
    parts = [samples, CASES["branches"], samples[:1]]
    expected = torch.cat([token_nll(model, lay_out(part))[0] for part in parts])
    joined = join([lay_out(part) for part in parts])
    assert torch.allclose(token_nll(model, joined)[0], expected, rtol=0, atol=1e-12)


def test_attention_that_was_changed_since_is_an_error(model, samples):
    """A boolean mask would be added to the scores by some attention and ignored by other."""
    model.set_attn_implementation("eager")
    with pytest.raises(TiterError, match="attention is `eager`"):
        token_nll(model, pack(samples))
    token_nll(model, pad(samples))


def test_branch_nll_adds_up_by_branch(model, alone, samples, lay_out):
    batch = lay_out(samples)
    nll, _ = token_nll(model, batch)
    rows = paths(samples)
    sums, counts = branch_nll(nll, batch["branch"], len(rows))
    assert counts.tolist() == [len(completion) for _, completion in rows]
    for number, row in enumerate(rows):
        assert sums[number].item() == pytest.approx(ref.sample_nll(alone, *row).sum().item(), abs=1e-11)


@pytest.fixture(scope="module")
def models(request):
    """(packed, library's own attention), for tests that draw many examples."""
    tiny = request.getfixturevalue("_tiny")
    packed, alone = (copy.deepcopy(tiny).double().eval() for _ in range(2))
    use_packed_attention(packed)
    alone.set_attn_implementation("sdpa")
    return packed, alone


tokens = st.integers(0, 11)
completions = st.lists(tokens, min_size=1, max_size=4)


@given(
    prefix=st.lists(tokens, max_size=3),
    trees=st.lists(
        st.tuples(st.lists(tokens, min_size=1, max_size=4), st.lists(completions, min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    ),
    share=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_forest_is_what_its_paths_are_alone(models, prefix, trees, share):
    samples = [Sample(prefix + prompt, branches) for prompt, branches in trees]
    packed, alone = models
    with torch.no_grad():
        nll, _ = token_nll(packed, pack(samples, share))
        expected = torch.cat([ref.sample_nll(alone, *path) for path in paths(samples)])
    assert torch.allclose(nll, expected, rtol=0, atol=1e-11)


def test_prompt_tokens_are_no_targets(samples, lay_out):
    batch = lay_out(samples)
    expected = [token for _, completion in paths(samples) for token in completion]
    assert batch["targets"].tolist() == expected
    assert batch["labels"].tolist() == batch["shift_labels"].tolist() == [expected]
    # A token is predicted from the one before it on its path: positions grow by one from the prompt's end.
    width = batch["input_ids"].shape[1]
    own = batch.get("position_ids", torch.arange(width).repeat(len(batch["input_ids"]), 1))
    positions = own.flatten()[batch["predict_from"]].tolist()
    assert positions == [
        len(prompt) - 1 + offset for prompt, completion in paths(samples) for offset in range(len(completion))
    ]


def test_sharing_the_prefix_saves_tokens():
    samples = [Sample([1, 2, 3, number], [[5, 2]]) for number in (6, 7, 8)]
    whole, shared = pack(samples, share_prefix=False), pack(samples)
    assert whole["input_ids"].shape[1] - shared["input_ids"].shape[1] == 2 * 3
    assert [mask.shape[2] for mask in shared["masks"]] == [3, 2, 2, 2]


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3]], 0),
        ([[1, 2], [1, 2]], 1),
        ([[1], [1]], 0),
        ([[1, 2, 3], [1, 2]], 1),
        ([[1, 2], [3, 2]], 0),
        ([[5, 1, 1], [5, 1, 2], [5, 0, 9]], 1),
    ],
)
def test_common_prefix_leaves_every_row_a_token(rows, shared):
    assert common_prefix_length(rows) == shared


CONTINUATIONS = {
    "usual": lambda number: [3 + number, 9, 2],
    "one token": lambda number: [2],
    "various": lambda number: [4] * (number + 1),
}


@pytest.mark.parametrize("continuation", CONTINUATIONS.values(), ids=CONTINUATIONS.keys())
def test_continuations_are_what_they_are_alone(model, alone, samples, share_prefix, continuation):
    continuations = [continuation(number) for number in range(len(samples))]
    nll, output = token_nll(model, pack(samples, share_prefix), use_cache=True)
    batch = pack_continuations(samples, continuations, share_prefix)
    with torch.no_grad():
        continued, _ = token_nll(model, batch, past_key_values=output.past_key_values, use_cache=True)
    expected = torch.cat([ref.sample_nll(alone, list(s.prompt), c) for s, c in zip(samples, continuations)])
    assert torch.allclose(continued, expected, rtol=0, atol=1e-11)
    assert batch["targets"].tolist() == [token for c in continuations for token in c]
    # The first pass still goes backward as if there had been no second one.
    direct, _ = token_nll(model, pack(samples, share_prefix))
    assert same(ref.gradient(model, nll.sum()), ref.gradient(model, direct.sum()))


def test_continuations_need_one_for_each_sample():
    with pytest.raises(ValueError, match="zip"):
        pack_continuations([Sample([1, 2], [[3]])] * 2, [[4]])


def test_collator_packs_every_stream_beside_the_training_row(model, alone):
    rows = [
        {
            "prompt_ids": [1, 2, number],
            "completion_ids": [number, 2],
            "row": 7 - number,
            "harmful_prompt_ids": [9, number],
            "harmful_completion_ids": [8, 8, 2],
            "continuation_ids": [5, number, 2],
        }
        for number in (3, 4)
    ]
    batch = PackCollator()(rows)
    assert batch["row"].tolist() == [4, 3]
    assert batch["targets"].tolist() == [3, 2, 4, 2]
    assert batch["harmful"]["targets"].tolist() == [8, 8, 2, 8, 8, 2]
    assert batch["continuation"]["targets"].tolist() == [5, 3, 2, 5, 4, 2]
    nll, _ = token_nll(model, batch["harmful"])
    expected = torch.cat([ref.sample_nll(alone, [9, number], [8, 8, 2]) for number in (3, 4)])
    assert torch.allclose(nll, expected, rtol=0, atol=1e-12)


def test_attention_without_spans_is_the_library_s(tiny):
    """Generation runs on the same model, with ordinary masks."""
    ids = torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    plain, packed = tiny.double().eval(), copy.deepcopy(tiny).double().eval()
    plain.set_attn_implementation("sdpa")
    use_packed_attention(packed)
    with torch.no_grad():
        left = plain(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        right = packed(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(left[mask.bool()], right[mask.bool()])
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids[:1]).logits, packed(input_ids=ids[:1]).logits)


def test_other_architectures_pack_too(tokenizer):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    packed = Qwen3ForCausalLM(config).double().eval()
    alone = copy.deepcopy(packed)
    alone.set_attn_implementation("sdpa")
    use_packed_attention(packed)
    samples = CASES["branches"]
    nll, _ = token_nll(packed, pack(samples))
    expected = torch.cat([ref.sample_nll(alone, *path) for path in paths(samples)])
    # The library's norm of this architecture rounds to float32.
    assert torch.allclose(nll, expected, rtol=0, atol=1e-5)
