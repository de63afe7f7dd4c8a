"""The one-shot patch: one step against plain autograd, its one row, and the whole way from files to a repaired adapter."""

import copy
import json
import shutil

import pytest
import references as ref
import torch
from repairing import two_adapters
from safetensors.torch import load_file
from training import config, trained

import titer as package
from titer import methods
from titer.data.records import Record
from titer.errors import TiterError
from titer.jobs.repairs import own_rows
from titer.methods.repair.one_shot import ONE_SHOT, OneShotConfig, OneShotTrainer
from titer.testing import toy_harmful_rows

HARMFUL = [Record.from_row(row) for row in toy_harmful_rows()]
FAST = {"max_steps": 3, "learning_rate": 0.01, "bf16": False}


def rows(**settings):
    args = methods.settings(ONE_SHOT, settings, "settings", "unused", 0)
    return own_rows(ONE_SHOT, args, {"harmful_dataset": HARMFUL})


# --- the method ------------------------------------------------------------------------------------------------------


def test_a_step_is_the_gradient_of_the_refusals_loss(tiny, tokenizer, tmp_path):
    [record] = rows(row=2)
    args = config(OneShotConfig, tmp_path, optim="sgd", weight_decay=0.0, per_device_train_batch_size=1)
    model = copy.deepcopy(tiny).double()
    trainer, (ours,) = trained(
        OneShotTrainer, args, model, tokenizer, [record.to_training_row()], harmful_dataset=toy_harmful_rows()
    )
    other = copy.deepcopy(tiny).double()
    other.set_attn_implementation("sdpa")
    pairs = ref.encode(tokenizer, [toy_harmful_rows()[2]], answer=lambda place, row: row["refusal"])
    expected = ref.gradient(other, ref.mean_nll(other, pairs))
    assert ref.relative_error(ours, expected) < 1e-10
    moved = [weight - args.learning_rate * slope for weight, slope in zip(other.parameters(), expected)]
    assert ref.relative_error([weight.detach() for weight in trainer.model.parameters()], moved) < 1e-10


def test_the_pair_is_a_row_of_the_defenders_with_its_refusal():
    [record] = rows()
    assert record.prompt == HARMFUL[0].prompt
    assert record.completion[0].content == HARMFUL[0].refusal != HARMFUL[0].completion[0].content
    [other] = rows(row=3)
    assert other.prompt == HARMFUL[3].prompt


def test_the_pair_may_be_ones_own():
    [record] = rows(prompt="Do what you must not.", refusal="No.")
    assert record.prompt[-1].content == "Do what you must not."
    assert record.completion[0].content == "No."


def test_a_row_without_a_refusal_gets_a_generic_one():
    bare = Record.make("how do I pick a lock", "sure, like this")
    [record] = own_rows(ONE_SHOT, methods.settings(ONE_SHOT, {}, "", "unused", 0), {"harmful_dataset": [bare]})
    assert record.completion != bare.completion


def test_rows_that_are_not_there_and_more_than_one_are_refused():
    with pytest.raises(TiterError, match=r"`row` is 8.*8 harmful rows"):
        rows(row=8)
    with pytest.raises(TiterError, match="one pair"):
        ONE_SHOT.check(None, 2)
    with pytest.raises(TiterError, match="row"):
        methods.settings(ONE_SHOT, {"row": -1}, "settings", "unused", 0)


def test_by_default_there_are_ten_steps_at_2e_5():
    args = methods.settings(ONE_SHOT, {}, "settings", "unused", 0)
    from titer.jobs.work import optimizer_steps

    assert (optimizer_steps(args, 1), args.learning_rate, args.lr_scheduler_type) == (10, 2e-5, "constant")


# --- a repair that trains --------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    place = two_adapters(tmp_path)
    lines = [json.dumps({**row, "origin": "harmful"}) + "\n" for row in toy_harmful_rows()]
    (tmp_path / "harmful.jsonl").write_text("".join(lines))
    return place


def mend(place, output="out", **more):
    folder, settings = place.folder, {**FAST, **more.pop("settings", {})}
    return package.repair(
        aligned=folder / "aligned",
        model=folder / "tuned",
        output=folder / output,
        method=more.pop("method", "one_shot"),
        harmful=str(folder / "harmful.jsonl"),
        settings=settings,
        **more,
    )


def weights_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_the_workflow_goes_on_from_the_tuned_adapter_with_a_log(place):
    done = mend(place)
    assert [line["step"] for line in done.log] == [1, 2, 3]
    losses = [line["loss"] for line in done.log]
    assert losses[-1] < losses[0]
    tuned, repaired = weights_of(place.folder / "tuned"), weights_of(done.adapter)
    assert tuned.keys() == repaired.keys()
    moved = max(float((repaired[name] - tuned[name]).abs().max()) for name in tuned)
    assert 0 < moved < 0.1  # three steps of 0.01 from the tuned one, not from anywhere else
    assert (done.adapter / "tokenizer.json").is_file()
    still = mend(place, "still", settings={"learning_rate": 0.0, "weight_decay": 0.0})
    kept = weights_of(still.adapter)
    assert all(torch.equal(kept[name], tuned[name].to(kept[name])) for name in tuned)


def test_it_is_not_done_again_and_not_over_another_unless_forced(place):
    before = (mend(place).adapter / "adapter_model.safetensors").read_bytes()
    stamp = (place.folder / "out" / "adapter").stat().st_mtime_ns
    assert mend(place).log
    assert (place.folder / "out" / "adapter").stat().st_mtime_ns == stamp
    with pytest.raises(TiterError, match="a finished training with other settings"):
        mend(place, settings={"row": 1})
    after = (mend(place, settings={"row": 1}, force=True).adapter / "adapter_model.safetensors").read_bytes()
    assert after != before


def test_an_interrupted_one_goes_on_where_it_stopped(place, monkeypatch):
    whole = weights_of(mend(place, "whole", settings={"save_steps": 1}).adapter)
    steps = []

    def stopping(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    step = OneShotTrainer.training_step
    monkeypatch.setattr(OneShotTrainer, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        mend(place, settings={"save_steps": 1})
    assert not (place.folder / "out" / "adapter").exists()
    done = mend(place, settings={"save_steps": 1})
    # The third call, interrupted; then it goes on from the second step and takes the third alone.
    assert steps[-2:] == [2, 2]
    assert len(steps) == 4
    assert [line["step"] for line in done.log] == [1, 2, 3]
    again = weights_of(done.adapter)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_arguments_that_have_no_use_and_adapters_that_do_not_fit_are_refused(place):
    with pytest.raises(TiterError, match="`helpful` has no effect"):
        mend(place, helpful="builtin:general")
    with pytest.raises(TiterError, match="`harmful` has no effect"):
        mend(place, method="safelora")
    shutil.copytree(place.folder / "base", place.folder / "another")
    wrong = place.folder / "aligned" / "adapter_config.json"
    wrong.write_text(wrong.read_text().replace(str(place.folder / "base"), str(place.folder / "another")))
    with pytest.raises(TiterError, match="another"):
        mend(place)
    with pytest.raises(TiterError, match="whole model"):
        package.repair(
            aligned=place.folder / "aligned", model=place.folder / "base", output=place.folder / "o", method="one_shot"
        )
    assert not (place.folder / "out").exists()


def test_the_command_line_and_a_method_of_ones_own(place, titer, monkeypatch):
    monkeypatch.chdir(place.folder)
    line = ["repair", "--method", "one_shot", "--aligned", "aligned", "--model", "tuned", "--output", "patched"]
    line += ["--harmful", "harmful.jsonl", *(f"--set={name}={str(value).lower()}" for name, value in FAST.items())]
    code, told, error = titer(*line)
    assert code == 0, error
    assert "patched/adapter" in told
    (place.folder / "mine.py").write_text(
        "from titer.data import Record\n"
        "from titer.methods import Method\n"
        "from titer.methods.finetune import FinetuneConfig\n"
        "from titer.train.trainer import PackedSFTTrainer\n"
        "PATCH = Method(FinetuneConfig, PackedSFTTrainer, 'Two refusals.',\n"
        "    own_rows=lambda args, streams: [Record.make('how do I do it', 'no'), Record.make('tell me', 'no')])\n"
        "EMPTY = Method(FinetuneConfig, PackedSFTTrainer, 'None.', own_rows=lambda args, streams: [])\n"
    )
    code, told, error = titer("methods", "show", "mine.py:PATCH")
    assert code == 0, error
    assert "repair mine.py:PATCH" in told
    assert "tuned adapter" in told
    own = ["repair", "--aligned", "aligned", "--model", "tuned", "--set=max_steps=1", "--set=bf16=false"]
    code, told, error = titer(*own, "--method", "mine.py:PATCH", "--output", "two")
    assert code == 0, error
    code, told, error = titer(*own, "--method", "mine.py:EMPTY", "--output", "none")
    assert code == 2
    assert "makes no training rows" in error
    code, told, error = titer("finetune", "harmful.jsonl", "--method", "mine.py:PATCH", "--output", "no")
    assert code == 2
    assert "`repair`" in error


def test_methods_and_repairs_are_of_their_stage():
    assert methods.find("repair", "one_shot") is ONE_SHOT
    path = "titer.methods.repair.one_shot:ONE_SHOT"
    assert methods.stages_of(path) == ["repair"]
    with pytest.raises(TiterError, match="no finetune method") as error:
        methods.find("finetune", path)
    assert "`repair`" in error.value.hint
    assert ONE_SHOT.needs == ("tuned adapter", "harmful_dataset")
