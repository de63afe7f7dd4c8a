"""The contract tests that users run over what is theirs find what they are there for."""

import copy
import dataclasses

import pytest
import torch

from titer import attacks, judges, methods
from titer.attacks import CATALOGUE, Attack
from titer.data import available
from titer.judges import KeywordJudge, Verdict
from titer.methods import Method
from titer.testing import JUDGE_CHECKS, METHOD_CHECKS, check_attack, check_dataset, check_judge, check_method, trials
from titer.trainer import PackedSFTConfig, PackedSFTTrainer


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


BROKEN = {
    "batch_splits_do_not_matter": Method(PackedSFTConfig, PerMicroBatch),
    "learning_rate_zero_leaves_weights_alone": Method(PackedSFTConfig, Leaking),
    "resumed_is_uninterrupted": Method(PackedSFTConfig, Forgetting),
    "weights_are_whole_when_any_pass_is_interrupted": Method(PackedSFTConfig, Swallowing),
    "settings_explain_themselves": Method(Mute, PackedSFTTrainer),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_method_that_breaks_a_rule_is_told_which(rule, tmp_path, monkeypatch):
    [(_, trial)] = trials(BROKEN[rule], tmp_path)
    with pytest.raises(AssertionError):
        METHOD_CHECKS[rule](trial)
    monkeypatch.setattr("titer.testing.METHOD_CHECKS", {rule: METHOD_CHECKS[rule]})
    with pytest.raises(AssertionError, match=rule.replace("_", " ")):
        check_method(BROKEN[rule])


def test_a_method_is_checked_by_its_name(monkeypatch):
    rule = "settings_explain_themselves"
    monkeypatch.setattr("titer.testing.METHOD_CHECKS", {rule: METHOD_CHECKS[rule]})
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


@pytest.mark.parametrize("name", judges.JUDGES)
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

    with pytest.raises(AssertionError, match="one response to two prompts"):
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
