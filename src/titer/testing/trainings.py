"""What must hold for every method that trains, whatever it computes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from titer.compat import count_hooks
from titer.errors import TiterError
from titer.testing.rules import by_name, settings_explain_themselves
from titer.testing.toy import toy, toy_harmful_rows, toy_rows
from titer.testing.trials import REFUSALS, StopAfter, Trial, same, weights


def _difference(left: Any, right: Any) -> float:
    pairs = zip(weights(left.model), weights(right.model), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def batch_splits_do_not_matter(trial: Trial) -> None:
    """8 × 1, 2 × 4 and 1 × 8 (micro-batches × samples) learn the same in three optimizer steps."""
    first: Any = None
    for size in (8, 4, 1):
        split: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = trial.train(str(size), rows=toy_rows(16), max_steps=3, optim="sgd", max_grad_norm=1.0, **split)
        first = first or trainer
        apart = _difference(first, trainer)
        assert apart < 1e-12, f"in batches of {size} weights differ by {apart:.1e} from those of one batch of 8"
        left, right = ([line["loss"] for line in each.state.log_history if "loss" in line] for each in (first, trainer))
        # The logged loss is added up in float32.
        near = all(abs(a - b) <= 1e-3 * abs(a) for a, b in zip(left, right, strict=True))
        assert near, f"in batches of {size} the logged loss is {right}, not {left}"


REFUSED = "refused"
"""What a rule returns of a method that refuses, by name, a setting that would have to change nothing."""


def _difference_by(trial: Trial, setting: str, **how: Any) -> float | None:
    """Return how far weights lie apart with and without a setting; `None` where the method refuses it by name."""
    off = trial.train(**{**how, setting: False})
    try:
        on = trial.train(**{**how, setting: True})
    except TiterError as error:
        if setting not in str(error):
            raise
        return None
    return _difference(off, on)


def gradient_checkpointing_changes_nothing(trial: Trial) -> str | None:
    """Activations that are computed anew give the same weights, or the setting is refused."""
    split: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    apart = _difference_by(trial, "gradient_checkpointing", max_steps=2, optim="sgd", **split)
    assert apart is None or apart < 1e-12, f"with gradient checkpointing weights differ by {apart:.1e}"
    return REFUSED if apart is None else None


def sharing_the_prefix_changes_nothing(trial: Trial) -> str | None:
    """Tokens that all prompts begin with give the same weights when they are computed once, or the setting is refused."""
    apart = _difference_by(trial, "share_prefix", max_steps=2, optim="sgd", with_lora=False)
    assert apart is None or apart < 1e-12, f"with a shared prefix weights differ by {apart:.1e}"
    return REFUSED if apart is None else None


def padded_is_packed(trial: Trial) -> None:
    """Models that cannot be packed learn the same from padded rows."""
    how: dict[str, Any] = {"rows": toy_rows(7), "max_steps": 3, "optim": "sgd"}
    how |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    packed = trial.train(**how)
    with mock.patch("titer.packing.layouts.use_packed_attention", side_effect=ZeroDivisionError):
        padded = trial.train(**how)
    assert packed.layout.packed
    assert not padded.layout.packed
    apart = _difference(packed, padded)
    assert apart < 1e-10, f"on padded rows weights differ by {apart:.1e}"


def learning_rate_zero_leaves_weights_alone(trial: Trial) -> None:
    """What a step perturbs comes back bit for bit; what is changed after the last step is no step's."""
    for with_lora in (True, False):
        split: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        model = copy.deepcopy(toy()[0]).float()
        trainer = trial.make(model=model, with_lora=with_lora, learning_rate=0.0, max_steps=2, **split)
        before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        with mock.patch.object(trainer, "after_training"):
            trainer.train()
        after = trainer.model.state_dict()
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert not changed, f"with a learning rate of 0, {len(changed)} tensors changed: {', '.join(changed[:3])}"
        assert trainer.state.global_step == 2


def weights_are_whole_when_any_pass_is_interrupted(trial: Trial) -> None:
    """Ctrl-C in any backward pass of a step leaves the weights as they were before it, and no hook on the model."""
    calls: list[Any] = []
    stop_at = 0

    def counted(run: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return run(*args, **kwargs)

        return interrupted

    def train() -> None:
        with mock.patch("torch.autograd.grad", counted(torch.autograd.grad)):
            trainer.train()

    def interruptible() -> Any:
        trainer = trial.make(with_lora=False, max_steps=1)
        trainer.accelerator.backward = counted(trainer.accelerator.backward)
        return trainer

    trainer = interruptible()
    hooks = count_hooks(trainer.model)
    train()
    assert count_hooks(trainer.model) == hooks, "after a training its hooks stay on the model"
    passes = len(calls)
    declared = 1 + sum(trial.method.gradients(trainer.args))
    assert passes == declared, f"a step makes {passes} backward passes, and its `gradients` add up to {declared:g}"
    trainer = interruptible()
    before = weights(trainer.model)
    for stop_at in range(1, passes + 1):
        calls.clear()
        try:
            train()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError(f"the trainer swallows Ctrl-C in backward pass {stop_at}")
        assert same(before, weights(trainer.model)), f"interrupted in backward pass {stop_at}, weights stay changed"
        assert count_hooks(trainer.model) == hooks, f"interrupted in backward pass {stop_at}, hooks stay on the model"
    calls.clear()
    stop_at = 0
    train()
    assert len(calls) == passes, f"after interruptions a step makes {len(calls)} backward passes, not {passes}"


def resumed_is_uninterrupted(trial: Trial) -> None:
    """Stopped at the end of an epoch of 7 rows in batches of 2 × 2 or in the middle of one, and gone on with, bit for bit."""
    how: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    how |= {"rows": toy_rows(7), "harmful": toy_harmful_rows()[:5], "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
    how |= {"model": copy.deepcopy(toy()[0]).float()}
    whole = trial.train("whole", **how)
    stopped = trial.train("stopped", callbacks=[StopAfter(3)], save_strategy="steps", save_steps=1, **how)
    assert stopped.state.global_step == 3
    assert not same(weights(stopped.model), weights(whole.model))
    # At two steps, of which one at most begins something that a method does every few steps.
    for step in (2, 3):
        resumed = trial.train("stopped", resume=str(trial.folder / "stopped" / f"checkpoint-{step}"), **how)
        assert resumed.state.global_step == whole.state.global_step == 6
        at = f"a run that is resumed after step {step}"
        assert same(weights(resumed.model), weights(whole.model)), f"{at} has other weights"
        held = [_optimizer_tensors(trainer) for trainer in (whole, resumed)]
        assert same(*held), f"{at} has another state of the optimizer"
        assert resumed.step_state.values == whole.step_state.values, f"{at} has another `step_state`"
        logs = [[_without_times(line) for line in trainer.state.log_history] for trainer in (whole, resumed)]
        differing = [line for line, other in zip(*logs, strict=True) if line != other]
        assert not differing, f"{at} logs something else than {differing[0]}"


def _optimizer_tensors(trainer: Any) -> list[Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return [state[key][name] for key in sorted(state) for name in sorted(state[key])]


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in line.items() if not name.startswith(("train_", "total_")) and name != "epoch"
    }


def prompts_are_never_trained_on(trial: Trial) -> None:
    """The targets of all passes, taken together, are the completions and refusals given, or how they begin, and nothing else."""
    from titer.packing.losses import token_logits, token_nll

    seen: list[tuple[int, ...]] = []

    def watching(original: Any) -> Any:
        def watched(model: Any, batch: Any, **forward: Any) -> Any:
            for number in batch["branch"].unique().tolist():
                seen.append(tuple(batch["targets"][batch["branch"] == number].tolist()))
            return original(model, batch, **forward)

        return watched

    homes = {kind.__module__ for kind in trial.method.trainer.__mro__}
    patches = [
        mock.patch.object(sys.modules[home], original.__name__, watching(original))
        for home in homes
        for original in (token_nll, token_logits)
        if getattr(sys.modules[home], original.__name__, None) is original
    ]
    for patch in patches:
        patch.start()
    try:
        trial.train(with_lora=False, max_steps=6)
    finally:
        for patch in patches:
            patch.stop()
    tokenizer = toy()[1]

    def ids(text: str) -> tuple[int, ...]:
        return (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)

    completions = {ids(each["completion"][0]["content"]) for each in toy_rows(8)}
    allowed = completions | {ids(each["completion"][0]["content"]) for each in [*toy_harmful_rows(), *toy_rows(5)]}
    allowed |= {ids(each["refusal"]) for each in toy_harmful_rows()} | {ids(text) for text in REFUSALS}
    begun = {whole[:length] for whole in allowed for length in range(1, len(whole) + 1)}
    others = [tokenizer.decode(list(target)) for target in set(seen) - begun]
    assert not others, f"it is trained on what is neither a completion nor a refusal: {others[:2]}"
    missing = [tokenizer.decode(list(target)) for target in completions - set(seen)]
    assert not missing, f"completions are passed over in six steps: {missing[:2]}"


def settings_of_trl_are_refused(trial: Trial) -> None:
    """`SFTConfig` in the place of the method's own settings would be other defaults, silently."""
    import trl

    args = trl.SFTConfig(  # type: ignore[attr-defined]
        output_dir=str(trial.folder), report_to="none", bf16=False
    )
    try:
        trial.make(args=args)
    except TiterError:
        return
    raise AssertionError("it takes an SFTConfig")


METHOD_CHECKS = by_name(
    [
        settings_explain_themselves,
        settings_of_trl_are_refused,
        prompts_are_never_trained_on,
        batch_splits_do_not_matter,
        gradient_checkpointing_changes_nothing,
        sharing_the_prefix_changes_nothing,
        padded_is_packed,
        learning_rate_zero_leaves_weights_alone,
        weights_are_whole_when_any_pass_is_interrupted,
        resumed_is_uninterrupted,
    ]
)
"""What must hold for every method, whatever it computes."""
