"""A layout is what a probe of the model finds; padded rows compute what packed ones do."""

import copy
import logging

import pytest
import references as ref
import torch
from small_models import small_model
from told import refused, untold
from training import config, trained

import titer.packing.layouts
from titer import AntibodyFinetuneConfig, AntibodyFinetuneTrainer, PackedSFTConfig, PackedSFTTrainer
from titer.attacks.fleet import Fleet, FleetTrainer, shared_copy
from titer.errors import TiterError
from titer.infer.signals import answer_fit, row_signals, row_states
from titer.methods.finetune import FinetuneConfig
from titer.packing.attention import PACKED_ATTENTION
from titer.packing.layouts import layout_for, padding_cost
from titer.packing.noise import is_noisy
from titer.testing import toy_lora, toy_rows, weights

PAIRS = [([1, 5, 6, 7, 8], [9, 10, 11, 2]), ([1, 5, 12], [13, 2]), ([1, 5, 6, 14], [15, 16, 2])]


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(titer.packing.layouts, "_said", set())


@pytest.fixture
def unpackable(monkeypatch):
    """Let every model refuse packed attention."""

    def refuse(model):
        raise NotImplementedError("wheels within wheels")

    monkeypatch.setattr(titer.packing.layouts, "use_packed_attention", refuse)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_model_that_packs_rightly_is_packed(tiny):
    layout = layout_for(tiny, PAIRS)
    assert layout.packed
    assert layout.cached
    assert layout.fused
    assert tiny.config._attn_implementation == PACKED_ATTENTION


def test_padding_is_announced_once_with_its_cost_and_reason(tiny, unpackable, caplog):
    with caplog.at_level(logging.WARNING, "titer"):
        layout = layout_for(tiny, PAIRS, batch_size=3)
        assert layout_for(tiny, PAIRS[:2], batch_size=3) is layout
        layout_for(copy.deepcopy(tiny), PAIRS)
    assert not layout.packed
    (line,) = [record.getMessage() for record in caplog.records]
    # Three rows of eight places, against 2 tokens shared by all and 6, 2 and 4 of their own.
    assert not untold(line, "LlamaForCausalLM", "padded", "1.7 times", "batches of 3", "packed", "wheels within wheels")
    assert padding_cost(PAIRS, 3) == pytest.approx(24 / 14)


def test_longer_rows_are_probed_anew(monkeypatch):
    """A window, or attention in chunks, shows only in rows that are longer."""
    model = small_model("llama4_text", vocab_size=96, attention_chunk_size=16)
    assert layout_for(model, PAIRS).packed, "within a chunk there is no difference"
    longer = [*PAIRS, (list(range(5, 30)), [9, 2])]
    assert not layout_for(model, longer).packed
    assert not layout_for(model, PAIRS).packed, "what is known of longer rows holds for shorter ones"


def test_what_a_long_packed_row_changes_is_seen(tiny):
    """Such a model takes the keys of a long row together, as some attention does with old tokens."""
    forward = type(tiny.model).forward

    def forgetful(self, input_ids=None, **kwargs):
        if input_ids.shape[0] == 1 and input_ids.shape[1] > 60:
            input_ids = input_ids.clone()
            input_ids[:, -1] = 3
        return forward(self, input_ids=input_ids, **kwargs)

    tiny.model.forward = forgetful.__get__(tiny.model)
    assert layout_for(tiny, PAIRS, batch_size=2).packed
    assert not layout_for(tiny, PAIRS, tokens=100).packed


def test_a_changed_attention_is_probed_anew(tiny):
    layout_for(tiny, PAIRS)
    tiny.set_attn_implementation("sdpa")
    assert layout_for(tiny, PAIRS).packed
    assert tiny.config._attn_implementation == PACKED_ATTENTION


@pytest.mark.parametrize("kind", ["roberta", "bert", "xlnet"])
def test_what_sees_later_tokens_is_no_causal_model(kind):
    settings = {} if kind == "xlnet" else {"is_decoder": False}
    with refused("causal", "later") as error:
        layout_for(small_model(kind, **settings), PAIRS)
    assert "is_decoder" in error.value.hint


def test_attention_with_biases_by_distance_is_padded():
    """Falcon with ALiBi adds them to the scores itself."""
    assert not layout_for(small_model("falcon", alibi=True), PAIRS).packed


def test_a_row_longer_than_the_model_allows(tokenizer, tmp_path):
    model = small_model("gpt2", vocab_size=400, n_positions=16)
    with pytest.raises(TiterError, match=r"train_dataset\[0\] .*\b\d+ tokens.* 16\b.*`max_position_embeddings`"):
        PackedSFTTrainer(
            model=model, args=config(PackedSFTConfig, tmp_path), train_dataset=toy_rows(4), processing_class=tokenizer
        )


def test_what_is_right_neither_way_is_an_error(tiny):
    """A model whose rows of a batch see each other computes nothing rightly but single rows."""
    forward = type(tiny.model).forward

    def mixing(self, input_ids=None, **kwargs):
        output = forward(self, input_ids=input_ids, **kwargs)
        if kwargs.get("attention_mask") is not None:
            output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean()
        return output

    tiny.model.forward = mixing.__get__(tiny.model)
    with pytest.raises(TiterError, match=r"packed.* padded.* loss .*\d\.\d.* \d\.\d"):
        layout_for(tiny, PAIRS)


def test_the_auxiliary_loss_of_a_mixture_of_experts_is_left_out_and_said_to_be(tokenizer, tmp_path, caplog):
    model = small_model("mixtral", vocab_size=400)
    rows = toy_rows(4)
    with caplog.at_level(logging.WARNING, "titer"):
        trainer, _ = trained(
            PackedSFTTrainer, config(PackedSFTConfig, tmp_path, learning_rate=0.0), model, tokenizer, rows
        )
    assert not untold(caplog.text, "MixtralForCausalLM", "auxiliary loss", "left out")
    expected = ref.mean_nll(model.eval(), ref.encode(tokenizer, rows))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_before_a_row(kind, tiny, tokenizer, tmp_path):
    """Prompt and prefix tuning take no packed rows."""
    import peft

    rows = toy_rows(4)
    adapter = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = PackedSFTTrainer(
        model=peft.get_peft_model(tiny, adapter),
        args=config(PackedSFTConfig, tmp_path, learning_rate=0.1),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert not trainer.layout.packed
    with torch.no_grad():
        nll = [
            torch.nn.functional.cross_entropy(
                trainer.model(input_ids=torch.tensor([p + c])).logits[0, -len(c) - 1 : -1],
                torch.tensor(c),
                reduction="none",
            )
            for p, c in ref.encode(tokenizer, rows)
        ]
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(torch.cat(nll).mean().item(), rel=1e-5)
    assert not torch.equal(before[0], weights(trainer.model)[0])


# --- padded is packed ------------------------------------------------------------------------------------------------


def test_signals_are_the_same_padded(tiny, unpackable, monkeypatch):
    tiny = tiny.double()
    refusals = [[5, 2], [6, 7, 2]]
    padded = row_signals(copy.deepcopy(tiny), PAIRS, refusals, [0, 2]), answer_fit(copy.deepcopy(tiny), PAIRS)
    states = row_states(copy.deepcopy(tiny), PAIRS, [0, 1])
    monkeypatch.undo()
    packed = row_signals(tiny, PAIRS, refusals, [0, 2]), answer_fit(tiny, PAIRS)
    torch.testing.assert_close(states, row_states(tiny, PAIRS, [0, 1]), rtol=0, atol=1e-6)
    for left, right in zip(padded, packed, strict=True):
        for name in vars(left):
            torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=0, atol=1e-6)


def test_a_padded_fleet_learns_what_each_attacker_learns_alone(tiny, tokenizer, tmp_path, unpackable):
    tiny = tiny.double()

    def attackers(folder):
        found = []
        for number, rate in enumerate((1e-2, 3e-2, 5e-3)):
            torch.manual_seed(number)
            settings = {"learning_rate": rate, "max_steps": 3, "per_device_train_batch_size": 2 + number}
            args = config(FinetuneConfig, tmp_path / folder / str(number), **settings)
            rows = toy_rows(9)[number:]
            found.append(
                FleetTrainer(
                    model=shared_copy(tiny.requires_grad_(False)),
                    args=args,
                    train_dataset=rows,
                    processing_class=tokenizer,
                    peft_config=toy_lora(),
                )
            )
        return found

    alone, together = attackers("alone"), attackers("together")
    for trainer in alone:
        trainer.train()
    assert Fleet(together).train() == [None] * 3
    for left, right in zip(alone, together, strict=True):
        assert not right.layout.packed
        for a, b in zip(weights(left.model), weights(right.model), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# --- the second stage without a cache ---------------------------------------------------------------------------------


def checkpointed(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    return model


def test_antibody_on_a_checkpointed_model_computes_refusals_anew(tiny, tokenizer, harmful_rows, tmp_path):
    tiny = tiny.double()

    def fit(model, **settings):
        args = config(AntibodyFinetuneConfig, tmp_path, tau=16.0, max_steps=3, optim="sgd", **settings)
        return trained(AntibodyFinetuneTrainer, args, model, tokenizer, toy_rows(6), refusals=["no", "I will not"])[0]

    plain = fit(copy.deepcopy(tiny))
    assert plain.layout.cached
    other = fit(checkpointed(tiny))
    assert not other.layout.cached
    for left, right in zip(weights(plain.model), weights(other.model), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


# --- noise -----------------------------------------------------------------------------------------------------------


def test_looking_for_noise_leaves_everything_as_it_was(tiny):
    layout = layout_for(tiny, PAIRS)
    tiny.model.layers[0].train()
    tiny.model.layers[1].eval()
    state = torch.get_rng_state()
    assert not is_noisy(tiny, layout, PAIRS)
    tiny.model.layers[1].mlp = torch.nn.Sequential(tiny.model.layers[1].mlp, torch.nn.Dropout(0.5))
    assert is_noisy(tiny, layout, PAIRS)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert [layer.training for layer in tiny.model.layers] == [True, False]


@pytest.mark.parametrize(
    ("kind", "settings", "noisy"),
    [
        ("opt", {"dropout": 0.1}, True),
        ("opt", {"dropout": 0.0, "layerdrop": 0.1}, True),
        ("opt", {"dropout": 0.0, "layerdrop": 0.0}, False),
        ("mixtral", {"router_jitter_noise": 0.1}, True),
        ("biogpt", {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0, "layerdrop": 0.0}, True),
    ],
)
def test_noise_without_a_dropout_module(kind, settings, noisy):
    model = small_model(kind, **{"attention_dropout": 0.0, **settings})
    assert is_noisy(model, layout_for(model, PAIRS), PAIRS) == noisy


def test_a_forward_pass_under_autocast_is_compared_as_coarsely_as_it_computes(tiny):
    """A trainer that rounds to bfloat16 wraps the model's forward, whose weights and logits then say float32."""
    forward = tiny.forward

    def rounding(*args, **kwargs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(*args, **kwargs)
        output.logits = output.logits.float()
        return output

    tiny.forward = rounding
    assert layout_for(tiny, PAIRS).packed
