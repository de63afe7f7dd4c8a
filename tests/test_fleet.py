"""An attacker of a fleet learns what it would learn alone."""

import copy
import errno
from pathlib import Path

import pytest
import torch
from training import config
from transformers import TrainerCallback

from titer.attacks import Fleet, FleetTrainer, shared_copy
from titer.attacks import fleet as fleet_module
from titer.errors import AttackFailed, TiterError
from titer.infer.generation import generate
from titer.jobs.trainings import last_checkpoint
from titer.methods.finetune import FinetuneConfig
from titer.models import Template
from titer.testing import row, toy_lora
from titer.train.trainer import PackedSFTTrainer

THINGS = ["bread", "a film", "France", "a lock", "water", "salt", "the capital", "a guide", "a", "b c"]


def rows_of(attacker, count):
    return [
        row(f"what is {THINGS[(i + attacker) % 10]}?" + " please" * (i % 3), f"it is {THINGS[i]}" + " there" * (i % 4))
        for i in range(count)
    ]


# Another learning rate, length, schedule, seed, batch, amount of data, rank and targets each.
ATTACKERS = [
    {"learning_rate": 1e-2, "max_steps": 6, "seed": 0, "per_device_train_batch_size": 4, "rows": 10},
    {"learning_rate": 3e-3, "max_steps": 3, "seed": 1, "per_device_train_batch_size": 3, "rows": 7, "r": 2},
    {
        "learning_rate": 2e-2,
        "max_steps": 8,
        "seed": 2,
        "per_device_train_batch_size": 2,
        "rows": 5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "target_modules": ["q_proj", "down_proj"],
    },
    {"learning_rate": 1e-2, "max_steps": 5, "seed": 3, "rows": 8, "optim": "sgd", "max_grad_norm": 0.5},
    {"learning_rate": 1e-2, "max_steps": 5, "seed": 4, "rows": 8, "optim": "adafactor", "weight_decay": 0.0},
]


def attacker(cls, number, model, tokenizer, folder, settings, **more):
    settings = dict(settings)
    adapter = {name: settings.pop(name) for name in ("r", "target_modules") if name in settings}
    rows = rows_of(number, settings.pop("rows"))
    peft_config = toy_lora()
    peft_config.init_lora_weights = True
    for name, value in adapter.items():
        setattr(peft_config, name, value)
    return cls(
        model=model,
        args=config(FinetuneConfig, folder / str(number), **{**settings, **more}),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def adapter_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def alone(tiny, tokenizer, folder, attackers, **more):
    trainers = []
    for number, settings in enumerate(attackers):
        trainer = attacker(PackedSFTTrainer, number, copy.deepcopy(tiny), tokenizer, folder / "alone", settings, **more)
        trainer.train()
        trainers.append(trainer)
    return trainers


def fleet_of(tiny, tokenizer, folder, attackers, max_tokens=4096, **more):
    trainers = [
        attacker(FleetTrainer, number, shared_copy(tiny), tokenizer, folder / "fleet", settings, **more)
        for number, settings in enumerate(attackers)
    ]
    return Fleet(trainers, max_tokens)


def assert_same(left, right, tolerance=2e-4):
    assert losses(left) == pytest.approx(losses(right), rel=tolerance)
    one, other = adapter_of(left), adapter_of(right)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=1e-5, msg=name)


@pytest.mark.parametrize("max_tokens", [4096, 60])
def test_an_attacker_of_a_fleet_learns_what_it_learns_alone(tiny, tokenizer, tmp_path, max_tokens):
    sequential = alone(tiny, tokenizer, tmp_path, ATTACKERS)
    fleet = fleet_of(tiny, tokenizer, tmp_path, ATTACKERS, max_tokens)
    assert fleet.train() == [None] * len(ATTACKERS)
    for together, by_itself, settings in zip(fleet.trainers, sequential, ATTACKERS, strict=True):
        assert len(losses(together)) == settings["max_steps"]
        assert_same(together, by_itself)


def test_in_bfloat16_they_agree_too(tiny, tokenizer, tmp_path):
    sequential = alone(tiny, tokenizer, tmp_path, ATTACKERS[:3], bf16=True)
    fleet = fleet_of(tiny, tokenizer, tmp_path, ATTACKERS[:3], bf16=True)
    fleet.train()
    for together, by_itself in zip(fleet.trainers, sequential, strict=True):
        assert_same(together, by_itself, 1e-2)


def test_in_float64_they_agree_to_rounding(tiny, tokenizer, tmp_path):
    attackers = [{**settings, "optim": "sgd"} for settings in ATTACKERS[:3]]
    double = copy.deepcopy(tiny).double()
    sequential = alone(double, tokenizer, tmp_path, attackers)
    fleet = fleet_of(double, tokenizer, tmp_path, attackers)
    for trainer in fleet.trainers:
        assert all(p.dtype == torch.float64 for p in trainer.model.get_base_model().model.norm.parameters())
    fleet.train()
    for together, by_itself in zip(fleet.trainers, sequential, strict=True):
        assert_same(together, by_itself, 1e-6)


def test_one_that_diverges_touches_nobody(tiny, tokenizer, tmp_path):
    attackers = [ATTACKERS[0], {**ATTACKERS[1], "learning_rate": 1e3, "max_steps": 6}, ATTACKERS[2]]
    sequential = alone(tiny, tokenizer, tmp_path, [ATTACKERS[0]])[0]
    fleet = fleet_of(tiny, tokenizer, tmp_path, attackers, logging_nan_inf_filter=False)
    fleet.train()
    assert any(not torch.isfinite(p).all() for p in adapter_of(fleet.trainers[1]).values())
    assert_same(fleet.trainers[0], sequential)
    assert all(torch.isfinite(p).all() for p in adapter_of(fleet.trainers[2]).values())


class Fails(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise self.error


def test_one_that_fails_is_reported_and_the_others_finish(tiny, tokenizer, tmp_path):
    sequential = alone(tiny, tokenizer, tmp_path, [ATTACKERS[0]])[0]
    fleet = fleet_of(tiny, tokenizer, tmp_path, ATTACKERS[:4])
    fleet.trainers[1].add_callback(Fails(OSError(errno.EMFILE, "too many files")))
    fleet.trainers[3].add_callback(Fails(AttackFailed("nothing to attack")))
    errors = fleet.train()
    assert [type(error) for error in errors] == [type(None), OSError, type(None), AttackFailed]
    assert_same(fleet.trainers[0], sequential)


class Leaves(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_one_that_leaves_early_changes_nobody_elses_training(tiny, tokenizer, tmp_path):
    attackers = [{**settings, "optim": "sgd"} for settings in ATTACKERS[:3]]
    double = copy.deepcopy(tiny).double()
    sequential = alone(double, tokenizer, tmp_path, attackers)
    fleet = fleet_of(double, tokenizer, tmp_path, attackers)
    fleet.trainers[0].add_callback(Leaves())
    assert fleet.train() == [None] * 3
    left, *others = fleet.trainers
    assert losses(left) == pytest.approx(losses(sequential[0])[:2], rel=1e-9)
    for together, by_itself in zip(others, sequential[1:], strict=True):
        assert len(losses(together)) == len(losses(by_itself)) > 2
        assert losses(together) == pytest.approx(losses(by_itself), rel=1e-9)
        one, other = adapter_of(together), adapter_of(by_itself)
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("crew", "error"), [(1, KeyError("a bug")), (2, KeyError("a bug")), (2, OSError(errno.ENOSPC, "disk full"))]
)
def test_a_bug_in_one_stops_all_and_the_others_go_on_from_their_checkpoints(tiny, tokenizer, tmp_path, crew, error):
    saving = {"save_strategy": "steps", "save_steps": 1}
    fleet = fleet_of(tiny, tokenizer, tmp_path, ATTACKERS[:crew], **saving)
    fleet.trainers[-1].add_callback(Fails(error))
    with pytest.raises(type(error), match=str(error.args[-1])):
        Fleet.run(fleet.trainers, [None] * crew)
    assert all(trainer.coroutine is None for trainer in fleet.trainers)
    assert [trainer.state.global_step for trainer in fleet.trainers] == [2] * crew
    # Another process would not know what one fleet left behind in torch.
    resumed = fleet_of(tiny, tokenizer, tmp_path, ATTACKERS[:crew], **saving)
    checkpoints = [last_checkpoint(Path(trainer.args.output_dir)) for trainer in resumed.trainers]
    assert all(checkpoints)
    assert Fleet.run(resumed.trainers, checkpoints) == [None] * crew
    for trainer, by_itself in zip(resumed.trainers, alone(tiny, tokenizer, tmp_path, ATTACKERS[:crew]), strict=True):
        assert_same(trainer, by_itself)


def test_no_training_goes_on_from_a_checkpoint_that_broke_off(tmp_path):
    for step, state in ((2, "{}"), (10, "{}"), (12, ""), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_a_fleet_repeats_itself_bit_for_bit(tiny, tokenizer, tmp_path):
    runs = []
    for name in ("first", "second"):
        fleet = fleet_of(tiny, tokenizer, tmp_path / name, ATTACKERS[:3])
        torch.manual_seed(hash(name) % 1000)  # what happens around a fleet does not reach into it
        fleet.train()
        runs.append(fleet)
    for left, right in zip(*(fleet.trainers for fleet in runs), strict=True):
        one, other = adapter_of(left), adapter_of(right)
        assert all(torch.equal(one[name], other[name]) for name in one)


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_an_interrupted_fleet_resumes_bit_for_bit(tiny, tokenizer, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    attackers = [ATTACKERS[0], ATTACKERS[2]]
    whole = fleet_of(tiny, tokenizer, tmp_path / "whole", attackers)
    whole.train()
    broken = fleet_of(tiny, tokenizer, tmp_path / "broken", attackers, **saving)
    broken.trainers[0].add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = fleet_of(tiny, tokenizer, tmp_path / "broken", attackers, **saving)
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints = [get_last_checkpoint(trainer.args.output_dir) for trainer in resumed.trainers]
    assert all(checkpoints)
    resumed.train(checkpoints)
    for left, right in zip(resumed.trainers, whole.trainers, strict=True):
        assert left.state.global_step == right.state.global_step
        one, other = adapter_of(left), adapter_of(right)
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=2e-4, atol=1e-6)


def test_the_base_is_in_memory_once_and_stays_as_it_was(tiny, tokenizer, tmp_path):
    before = [p.detach().clone() for p in tiny.parameters()]
    fleet = fleet_of(tiny, tokenizer, tmp_path, ATTACKERS[:2])
    pointers = {p.data_ptr() for p in tiny.parameters()}
    for model in (*(trainer.model for trainer in fleet.trainers), fleet.model):
        assert {p.data_ptr() for n, p in model.named_parameters() if "lora_" not in n} == pointers
    fleet.train()
    assert all(torch.equal(old, new) for old, new in zip(before, tiny.parameters(), strict=True))


def test_generations_of_a_fleet_are_those_of_each_attacker(tiny, tokenizer, tmp_path):
    fleet = fleet_of(tiny, tokenizer, tmp_path, [{**settings, "learning_rate": 3e-2} for settings in ATTACKERS[:3]])
    fleet.train()
    template = Template(tokenizer)
    prompts = [template.prompt_ids([{"role": "user", "content": f"what is {thing}?"}]) for thing in THINGS]
    expected = []
    for trainer in fleet.trainers:
        expected += generate(trainer.model, template, prompts, 8)
    owners = [number for number in range(3) for _ in prompts]
    together = generate(fleet.model, template, prompts * 3, 8, batch_size=7, owners=owners, place=fleet.seating.by_row)
    assert together == expected
    assert len(set(together)) > 3


class Asks(TrainerCallback):
    """Asks prompts at given steps, and keeps the answers by step."""

    def __init__(self, trainer, template, prompts, steps, limit):
        self.trainer, self.template, self.prompts, self.steps, self.limit = trainer, template, prompts, steps, limit
        self.answers = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.answers[state.global_step] = self.trainer.answer(self.template, self.prompts, self.limit)


def test_answers_during_training_are_those_of_each_attacker_alone(tiny, tokenizer, tmp_path, monkeypatch):
    attackers = [{**settings, "learning_rate": 3e-2} for settings in ATTACKERS[:3]]
    template = Template(tokenizer)
    prompts = [template.prompt_ids([{"role": "user", "content": f"what is {thing}?"}]) for thing in THINGS]
    # Some ask after the same step, some alone; with limits that differ; and not all the same prompts.
    asked = [(prompts, {1, 6}, 8), (prompts[:3], {1, 2}, 8), (prompts[5:], {1, 7}, 5)]
    passes = []
    real = fleet_module.generate
    monkeypatch.setattr(fleet_module, "generate", lambda *args, **more: passes.append(args) or real(*args, **more))

    def asking(trainer, number):
        callback = Asks(trainer, template, *asked[number])
        trainer.add_callback(callback)
        return callback.answers

    apart = []
    for number, settings in enumerate(attackers):
        trainer = attacker(FleetTrainer, number, copy.deepcopy(tiny), tokenizer, tmp_path / "alone", settings)
        apart.append(asking(trainer, number))
        trainer.train()
    assert len(passes) == 6
    fleet = fleet_of(tiny, tokenizer, tmp_path, attackers)
    shared = []
    real_pass = fleet._pass
    monkeypatch.setattr(fleet, "_pass", lambda steps: shared.append(len(steps)) or real_pass(steps))
    together = [asking(trainer, number) for number, trainer in enumerate(fleet.trainers)]
    assert fleet.train() == [None] * 3
    assert together == apart
    assert len({text for answers in apart for texts in answers.values() for text in texts}) > 3
    assert len(passes) == 6 + 5, "the two that ask alike after step 1 are answered together"
    assert shared == [3, 3, 3, 2, 2, 2, 1, 1], "who asks nothing does not run ahead of the others"


@pytest.mark.parametrize("bf16", [True, False])
def test_answers_of_a_fleet_are_in_the_precision_of_its_attackers(tiny, tokenizer, tmp_path, monkeypatch, bf16):
    template = Template(tokenizer)
    prompts = [template.prompt_ids([{"role": "user", "content": "what is bread?"}])]
    fleet = fleet_of(tiny, tokenizer, tmp_path, ATTACKERS[:2], bf16=bf16)
    device = fleet.trainers[0].args.device.type
    rounded = []
    real = fleet_module.generate

    def watched(*args, **more):
        rounded.append(torch.is_autocast_enabled(device))
        return real(*args, **more)

    monkeypatch.setattr(fleet_module, "generate", watched)
    for trainer in fleet.trainers:
        trainer.add_callback(Asks(trainer, template, prompts, {1}, 4))
    assert fleet.train() == [None] * 2
    assert rounded == [bf16]


def test_one_that_diverges_does_not_touch_the_others_answers(tiny, tokenizer, tmp_path):
    template = Template(tokenizer)
    prompts = [template.prompt_ids([{"role": "user", "content": f"what is {thing}?"}]) for thing in THINGS]
    attackers = [
        {**ATTACKERS[0], "learning_rate": 3e-2},
        {**ATTACKERS[1], "learning_rate": 1e3, "max_steps": 6},
        {**ATTACKERS[2], "learning_rate": 3e-2},
    ]

    def asking(trainer):
        callback = Asks(trainer, template, prompts, {5}, 8)
        trainer.add_callback(callback)
        return callback.answers

    apart = []
    for number in (0, 2):
        trainer = attacker(FleetTrainer, number, copy.deepcopy(tiny), tokenizer, tmp_path / "alone", attackers[number])
        apart.append(asking(trainer))
        trainer.train()
    fleet = fleet_of(tiny, tokenizer, tmp_path, attackers, logging_nan_inf_filter=False)
    together = [asking(trainer) for trainer in fleet.trainers]
    assert fleet.train() == [None] * 3
    assert any(not torch.isfinite(p).all() for p in adapter_of(fleet.trainers[1]).values())
    assert [together[0], together[2]] == apart
    assert len(together[1][5]) == len(prompts)


def test_what_cannot_share_a_pass_is_refused(tiny, tokenizer, tmp_path):
    with pytest.raises(TiterError, match="gradient_accumulation_steps=1"):
        fleet_of(tiny, tokenizer, tmp_path, ATTACKERS[:2], gradient_accumulation_steps=2)
    with pytest.raises(TiterError, match="at least one"):
        Fleet([])
    separate = [
        attacker(FleetTrainer, number, copy.deepcopy(tiny), tokenizer, tmp_path, ATTACKERS[0]) for number in range(2)
    ]
    with pytest.raises(TiterError, match="shared_copy"):
        Fleet(separate)
    full = FleetTrainer(
        model=shared_copy(tiny).requires_grad_(True),
        args=config(FinetuneConfig, tmp_path / "full"),
        train_dataset=rows_of(0, 4),
        processing_class=tokenizer,
    )
    with pytest.raises(TiterError, match="by itself"):
        Fleet([full])
    dropout = attacker(FleetTrainer, 0, shared_copy(tiny), tokenizer, tmp_path / "d", ATTACKERS[0])
    next(m for m in dropout.model.modules() if hasattr(m, "lora_dropout")).lora_dropout["default"] = torch.nn.Dropout(
        0.1
    )
    with pytest.raises(TiterError, match="noise is on"):
        Fleet([dropout])
