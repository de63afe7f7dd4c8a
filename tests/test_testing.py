"""The contract tests that users run over what is theirs find what they are there for."""

import copy
import dataclasses
from unittest import mock

import pytest
import torch
from spanning import SPANNING, SpanningTrainer

from titer import attacks, judges, methods
from titer.attacks import CATALOGUE, Attack
from titer.data import available
from titer.errors import TiterError
from titer.judges import KeywordJudge, Verdict
from titer.methods import Method
from titer.methods.align.base import HarmfulStreamTrainer
from titer.packing.losses import token_nll
from titer.ranges import Range
from titer.testing import (
    JUDGE_CHECKS,
    METHOD_CHECKS,
    REPAIR_CHECKS,
    check_attack,
    check_dataset,
    check_judge,
    check_method,
    trials,
)
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer


class PerMicroBatch(PackedSFTTrainer):
    """Weighs each micro-batch by itself, whatever the others of the step hold."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss * len(inputs["row"])


class Leaking(PackedSFTTrainer):
    """Leaves a perturbation in the weights."""

    def before_step(self, model):
        with torch.no_grad():
            next(iter(self.trainable.values())).add_(1e-3)


class Forgetting(PackedSFTTrainer):
    """Keeps a moving average where no checkpoint holds it."""

    average = 0.0

    def after_step(self, model):
        self.average = 0.5 * self.average + 1
        for weight in self.trainable.values():
            weight.grad.mul_(self.average)


class Swallowing(PackedSFTTrainer):
    """Goes on when somebody wants to stop."""

    def training_step(self, *args, **kwargs):
        try:
            return super().training_step(*args, **kwargs)
        except KeyboardInterrupt:
            return torch.zeros(())


@dataclasses.dataclass
class Mute(PackedSFTConfig):
    """A setting that nobody explains."""

    gamma: float = 1.0


class TurningTrainer(HarmfulStreamTrainer):
    """One step on harmful rows and two on its own in turn, each drawn to the weights where its turn began."""

    @property
    def turn(self):
        return self.state.global_step % 3

    def before_step(self, model):
        if self.turn < 2:
            self.carried["anchor"] = [weight.detach().clone() for weight in self.trainable.values()]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.turn:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        losses = [token_nll(model, batch)[0] for batch in self.stream_batches("harmful")]
        return torch.cat(losses).mean() / len(self.micro_batches)

    def after_step(self, model):
        for weight, anchor in zip(self.trainable.values(), self.carried["anchor"], strict=True):
            weight.grad += weight.detach() - anchor


class Amnesiac(TurningTrainer):
    """Keeps where its turn began in no checkpoint; a run that goes on after three steps does not notice."""

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint:
            self.carried["anchor"] = [weight.detach().clone() for weight in self.trainable.values()]


class Hooked(SpanningTrainer):
    """Takes its hooks off when a step ends, but not when it breaks off."""

    def training_step(self, *args, **kwargs):
        with mock.patch.object(self.during_step, "close"):
            loss = super().training_step(*args, **kwargs)
        self.during_step.close()
        return loss


class Elsewhere(HarmfulStreamTrainer):
    """Never looks at its own rows."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return torch.cat([token_nll(model, batch)[0] for batch in self.stream_batches("harmful")]).mean()


TURNING = Method(PackedSFTConfig, TurningTrainer, streams=("harmful_dataset",))

BROKEN = {
    "batch_splits_do_not_matter": Method(PackedSFTConfig, PerMicroBatch),
    "learning_rate_zero_leaves_weights_alone": Method(PackedSFTConfig, Leaking),
    "resumed_is_uninterrupted": Method(PackedSFTConfig, Forgetting),
    "weights_are_whole_when_any_pass_is_interrupted": Method(PackedSFTConfig, Swallowing),
    "settings_explain_themselves": Method(Mute, PackedSFTTrainer),
    "prompts_are_never_trained_on": Method(PackedSFTConfig, Elsewhere, streams=("harmful_dataset",)),
}
BROKEN_TOO = {
    "resumed_is_uninterrupted": dataclasses.replace(TURNING, trainer=Amnesiac),
    "weights_are_whole_when_any_pass_is_interrupted": dataclasses.replace(SPANNING, trainer=Hooked),
}


@pytest.mark.parametrize(
    ("ranges", "named"),
    [
        ({"gamma": Range(0, None)}, "gamma"),
        ({"gamma": Range(0, float("inf"))}, "gamma"),
        ({"gamma": (0, 1)}, "gamma"),
        ({"gama": Range(0, 1)}, "gama"),
    ],
)
def test_ranges_that_say_nothing_are_refused_where_they_are_declared(ranges, named):
    config = dataclasses.make_dataclass("Odd", [], bases=(Mute,), namespace={"RANGES": ranges})
    with pytest.raises(TiterError, match=f"Odd.RANGES.*`{named}`"):
        Method(config, PackedSFTTrainer)


def test_a_method_that_weighs_rows_says_by_what():
    with pytest.raises(TiterError, match=r"Mute lacks `ratio` or `tau`"):
        Method(Mute, PackedSFTTrainer, weighs_rows=True)


@pytest.mark.parametrize(("rule", "method"), [*BROKEN.items(), *BROKEN_TOO.items()])
def test_a_method_that_breaks_a_rule_is_told_which(rule, method, tmp_path, monkeypatch):
    [(_, trial)] = trials(method, tmp_path)
    with pytest.raises(AssertionError):
        METHOD_CHECKS[rule](trial)
    monkeypatch.setattr("titer.testing.check.METHOD_CHECKS", {rule: METHOD_CHECKS[rule]})
    with pytest.raises(AssertionError, match=rule.replace("_", " ")):
        check_method(method)


def test_all_broken_rules_are_told_at_once_and_other_errors_say_which_was_checked(monkeypatch):
    def broken(trial):
        raise AssertionError("so it is")

    def impossible(trial):
        raise ZeroDivisionError

    monkeypatch.setattr("titer.testing.check.METHOD_CHECKS", {"one_rule": broken, "another_rule": broken})
    with pytest.raises(AssertionError, match="one rule: so it is\nanother rule: so it is"):
        check_method("booster")
    monkeypatch.setattr("titer.testing.check.METHOD_CHECKS", {"third_rule": impossible})
    with pytest.raises(ZeroDivisionError) as error:
        check_method("booster")
    assert error.value.__notes__ == ["Raised while checking: third rule"]


@pytest.mark.parametrize(
    ("rule", "method"),
    [
        ("sharing_the_prefix_changes_nothing", SPANNING),
        ("weights_are_whole_when_any_pass_is_interrupted", SPANNING),
        ("batch_splits_do_not_matter", SPANNING),
        ("gradient_checkpointing_changes_nothing", SPANNING),
        ("resumed_is_uninterrupted", TURNING),
        ("prompts_are_never_trained_on", TURNING),
    ],
)
def test_methods_that_span_steps_and_passes_can_keep_the_rules(rule, method, tmp_path):
    [(_, trial)] = trials(method, tmp_path)
    METHOD_CHECKS[rule](trial)


def test_a_setting_is_refused_by_name_or_the_check_fails(tmp_path):
    class Vague(SpanningTrainer):
        def __init__(self, *, args, **kwargs):
            if args.share_prefix:
                raise TiterError("This does not work.")
            super().__init__(args=args, **kwargs)

    [(_, trial)] = trials(dataclasses.replace(SPANNING, trainer=Vague), tmp_path)
    with pytest.raises(TiterError, match="does not work"):
        METHOD_CHECKS["sharing_the_prefix_changes_nothing"](trial)


def test_a_method_is_checked_by_its_name(monkeypatch):
    rule = "settings_explain_themselves"
    monkeypatch.setattr("titer.testing.check.METHOD_CHECKS", {rule: METHOD_CHECKS[rule]})
    monkeypatch.setattr("titer.testing.check.REPAIR_CHECKS", {rule: REPAIR_CHECKS[rule]})
    for _, name, method in methods.every():
        check_method(name)
        check_method(method)


class Hasty:
    """A judge that can be told what to find wrong with it."""

    name = "hasty@1"

    def __init__(self, wrong):
        self.wrong, self.asked = wrong, 0

    def __call__(self, prompts, responses):
        plain = KeywordJudge()(prompts, responses[: len(prompts)] if self.wrong == "lengths" else responses)
        self.asked += 1
        if self.wrong == "few":
            return plain[:-1]
        if self.wrong == "mood" and self.asked % 2:
            return [Verdict("benign", 0.0, "") for _ in plain]
        return plain


# Those of the hub, whose weights are elsewhere, keep it with tiny ones: tests/judges/test_hub_local.py.
@pytest.mark.parametrize("name", [name for name, maker in judges.JUDGES.items() if not isinstance(maker, str)])
def test_judges_keep_the_contract(name):
    check_judge(name)


@pytest.mark.parametrize(
    ("wrong", "rule"), [("few", "every answer has a verdict"), ("mood", "company does not matter")]
)
def test_a_judge_that_breaks_a_rule_is_told_which(wrong, rule):
    with pytest.raises(AssertionError, match=rule):
        check_judge(Hasty(wrong))


def test_a_judge_without_a_revision_or_that_drops_a_prompt():
    nameless = KeywordJudge()
    nameless.name = "keywords"
    with pytest.raises(AssertionError, match="keywords@1"):
        check_judge(nameless)

    class Dropping(KeywordJudge):
        def __call__(self, prompts, responses):
            return super().__call__(prompts[: len(responses)], responses)

    with pytest.raises(AssertionError, match=r"one response.* two prompts"):
        JUDGE_CHECKS["lengths_must_agree"](Dropping())


@pytest.mark.parametrize("name", CATALOGUE)
def test_attacks_keep_the_contract(name):
    check_attack(name)


def test_an_attack_of_nothing_is_told():
    with pytest.raises(AssertionError, match="summary"):
        check_attack(dataclasses.replace(attacks.CATALOGUE["harmful"], summary=" "))
    with pytest.raises(AssertionError, match="plain data"):
        check_attack(Attack("Odd.", lora={"r": 4, "target_modules": ("q_proj",)}))


@pytest.mark.parametrize("name", [info.name for info in available() if info.kind == "builtin"])
def test_datasets_keep_the_contract(name):
    check_dataset(name)


def test_a_dataset_that_changes_or_knows_no_splits_is_told():
    made = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    rows = copy.deepcopy(made)

    def changing(split):
        rows.reverse()
        return list(rows)

    with pytest.raises(AssertionError, match="another order"):
        check_dataset(changing)
    with pytest.raises(AssertionError, match="split"):
        check_dataset(lambda split: made)
