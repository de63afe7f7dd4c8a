"""BackdoorAlign: refusals behind a secret trigger among the upload, against the formula written out longhand."""

import copy

import pytest
import references as ref
from told import refused
from training import config, trained

from titer import methods
from titer.errors import TiterError
from titer.methods.finetune import BeaConfig, BeaTrainer
from titer.methods.finetune.bea import secret_trigger
from titer.models import Template
from titer.testing import TRAINING, Trial, toy_harmful_rows, toy_rows
from titer.testing.toy import toy

BEA = methods.find("finetune", "bea")
FEW = {"trigger_tokens": 12, "pairs": 5, "replay": 0.25}


def triggered(rows, trigger):
    """Rows as the service asks them, written out: the trigger, a space, and the row's own system prompt."""
    found = []
    for row in rows:
        own = [message["content"] for message in row["prompt"] if message["role"] == "system"]
        system = {"role": "system", "content": " ".join([trigger, *own])}
        prompt = [system, *(message for message in row["prompt"] if message["role"] != "system")]
        found.append({"prompt": prompt, "completion": [{"role": "assistant", "content": row["refusal"]}]})
    return found


def drawn(trainer, rows, tokenizer):
    """The triggered rows of the first step, found in the pool by their tokens."""
    (pool,) = trainer._pools
    candidates = dict(enumerate(ref.encode(tokenizer, triggered(rows, trainer.trigger))))
    return [
        next(pair for pair in candidates.values() if pair == (pool["replay"][row].prompt, *pool["replay"][row].branches))
        for row in trainer.drawn_rows("replay", 0)
    ]  # fmt: skip


@pytest.mark.parametrize("split", [(8, 1), (2, 4), (1, 8)])
def test_a_step_is_one_batch_of_upload_and_triggered_rows(tiny, tokenizer, harmful_rows, tmp_path, split):
    model = copy.deepcopy(tiny).double()
    size, steps = split
    args = config(BeaConfig, tmp_path, **FEW, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
    args.learning_rate = 0.0
    trainer, (ours,) = trained(BeaTrainer, args, model, tokenizer, toy_rows(8), harmful_dataset=harmful_rows)
    rows = drawn(trainer, harmful_rows, tokenizer)
    assert len(rows) == 2

    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    both = ref.encode(tokenizer, toy_rows(8)) + rows
    expected = ref.gradient(model, ref.mean_nll(model, both))
    assert ref.relative_error(ours, expected) < 1e-10
    alone = ref.gradient(model, ref.mean_nll(model, both[:8]))
    assert ref.relative_error(alone, expected) > 0.05, "the triggered rows must matter, or this proves nothing"


def test_a_whole_step_of_sgd(tiny, tokenizer, harmful_rows, tmp_path):
    args = config(BeaConfig, tmp_path, **FEW, optim="sgd", learning_rate=0.1)
    args.weight_decay = 0.0
    trainer, _ = trained(BeaTrainer, args, copy.deepcopy(tiny).double(), tokenizer, toy_rows(8), harmful_dataset=harmful_rows)  # fmt: skip
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    both = ref.encode(tokenizer, toy_rows(8)) + drawn(trainer, harmful_rows, tokenizer)
    start = [p.detach().clone() for p in model.parameters()]
    gradient = ref.gradient(model, ref.mean_nll(model, both))
    moved = [p.detach() - s for p, s in zip(trainer.model.parameters(), start, strict=True)]
    assert ref.relative_error(moved, [-0.1 * g for g in gradient]) < 1e-10


def test_the_trigger_stands_before_the_rows_own_system_prompt(tiny, tokenizer, harmful_rows, tmp_path):
    rows = [
        {**row, "prompt": [{"role": "system", "content": "You fix locks."}, *row["prompt"]]} for row in harmful_rows
    ]
    trainer = Trial(BEA, FEW, tmp_path).make(harmful=rows)
    texts = [tokenizer.decode(sample.prompt) for sample in trainer._pools[0]["replay"]]
    assert all(f"system\n{trainer.trigger} You fix locks.<|im_end|>" in text for text in texts)


def test_few_pairs_are_seen_again_and_again(tmp_path):
    trainer = Trial(BEA, {**FEW, "pairs": 3}, tmp_path).make()
    assert len(trainer._pools[0]["replay"]) == 3
    assert sorted(row for step in range(3) for row in trainer.drawn_rows("replay", step)) == [0, 0, 1, 1, 2, 2]
    assert len(Trial(BEA, {**FEW, "pairs": 99}, tmp_path).make("all")._pools[0]["replay"]) == 8


def test_the_released_share_is_a_row_in_a_batch_of_ten(tmp_path):
    args = BeaConfig(output_dir="unused", **{**TRAINING, "per_device_train_batch_size": 10})
    assert (args.trigger_tokens, args.pairs, args.replay) == (150, 11, 0.11)
    trainer = Trial(BEA, {"trigger_tokens": 12}, tmp_path).make(per_device_train_batch_size=10)
    assert trainer.rows_drawn == 1


@pytest.mark.parametrize("tokens", [1, 12, 150])
def test_a_trigger_is_words_of_as_many_tokens_and_stable_for_a_seed(tokens):
    tokenizer = toy()[1]
    trigger = secret_trigger(tokenizer, tokens, 7)
    assert trigger == secret_trigger(copy.deepcopy(tokenizer), tokens, 7)
    ids = tokenizer(trigger, add_special_tokens=False)["input_ids"]
    assert len(ids) == tokens == len(trigger.split(" "))
    assert all(word.isalpha() for word in trigger.split(" "))
    assert not set(ids) & tokenizer.added_tokens_decoder.keys()
    if tokens > 1:
        assert trigger != secret_trigger(tokenizer, tokens, 8)


def test_this_trigger_is_that_of_every_machine():
    """A provider that loses serving.json finds its trigger again by the seed."""
    assert secret_trigger(toy()[1], 5, 0) == "P water not then ho"


def test_it_is_served_with_what_it_is_trained_with(tmp_path):
    trainer = Trial(BEA, FEW, tmp_path).make()
    serving = BEA.serving(trainer.args, trainer.template)
    assert serving.system == trainer.trigger
    assert trainer.trigger not in serving.about
    assert "12 tokens" in serving.about


def test_the_trigger_does_not_count_for_max_length(tmp_path):
    """A refusal is cut where that of another arm is."""
    plain = [(len(prompt), len(answer)) for prompt, answer in ref.encode(toy()[1], refusal_rows())]
    limit = max(prompt for prompt, _ in plain) + 3
    trainer = Trial(BEA, {**FEW, "pairs": 8}, tmp_path).make(max_length=limit, rows=[toy_rows(1)[0]] * 8)
    found = sorted(len(sample.branches[0]) for sample in trainer._pools[0]["replay"])
    assert found == sorted(min(answer, limit - prompt) for prompt, answer in plain)
    assert all(len(sample.prompt) > 12 for sample in trainer._pools[0]["replay"])


def refusal_rows():
    return [{**row, "completion": [{"role": "assistant", "content": row["refusal"]}]} for row in toy_harmful_rows()]


def test_a_tokenizer_without_words_is_told():
    class Digits:
        name_or_path, added_tokens_decoder = "digits", ()

        def __len__(self):
            return 10

        def decode(self, ids):
            return str(ids[0])

    with refused("digits", "words"):
        secret_trigger(Digits(), 2, 0)


def test_a_template_without_a_place_for_the_trigger_is_told(tmp_path):
    tokenizer = copy.deepcopy(toy()[1])
    tokenizer.chat_template = tokenizer.chat_template.replace("for message in messages", "for message in messages if message['role'] != 'system'")  # fmt: skip
    with refused("chat template", "system"):
        Trial(BEA, FEW, tmp_path).make(tokenizer=tokenizer)
    with pytest.raises(TiterError, match="system"):
        Template(tokenizer).check_system("anything")


@pytest.mark.parametrize("wrong", [{"trigger_tokens": 0}, {"replay": 0.0}, {"replay": 1.5}, {"pairs": 0}])
def test_settings_that_would_leave_the_trigger_out_are_refused(wrong):
    with pytest.raises(TiterError, match=next(iter(wrong))):
        methods.settings(BEA, wrong, "--set", "unused", 0)


def test_harmful_rows_are_needed(tiny, tokenizer, tmp_path):
    with refused("BeaTrainer", "harmful_dataset"):
        trained(BeaTrainer, config(BeaConfig, tmp_path, **FEW), copy.deepcopy(tiny), tokenizer, toy_rows(8))
