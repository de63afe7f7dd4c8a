"""Whatever a user gets wrong about a trainer is a `TiterError` that says what, where and what to do."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from told import refused
from training import config

from titer import (
    AntibodyAlignmentConfig,
    AntibodyAlignmentTrainer,
    AntibodyFinetuneConfig,
    AntibodyFinetuneTrainer,
    BoosterConfig,
    BoosterTrainer,
    GateConfig,
    GateTrainer,
    PackedSFTConfig,
    PackedSFTTrainer,
)
from titer import methods as registry
from titer.errors import TiterError
from titer.models import load_model, load_tokenizer
from titer.testing import row, toy_lora, toy_rows
from titer.train.rows import Encoder

CONFIGS = [PackedSFTConfig, BoosterConfig, AntibodyAlignmentConfig, AntibodyFinetuneConfig, GateConfig]


@pytest.fixture
def sft(tiny, tokenizer, tmp_path):
    """Makes an SFT trainer on rows."""

    def make(rows, model=None, settings=None, **more):
        return PackedSFTTrainer(
            model=tiny if model is None else model,
            args=config(PackedSFTConfig, tmp_path, **(settings or {})),
            train_dataset=rows,
            processing_class=tokenizer,
            **more,
        )

    return make


@pytest.fixture
def booster(tiny, tokenizer, tmp_path):
    def make(harmful, rows=None, model=None, **settings):
        return BoosterTrainer(
            model=tiny if model is None else model,
            args=config(BoosterConfig, tmp_path, **settings),
            train_dataset=toy_rows(4) if rows is None else rows,
            processing_class=tokenizer,
            harmful_dataset=harmful,
        )

    return make


@pytest.fixture
def antibody(tiny, tokenizer, tmp_path):
    def make(rows, **settings):
        return AntibodyFinetuneTrainer(
            model=tiny,
            args=config(AntibodyFinetuneConfig, tmp_path, **settings),
            train_dataset=rows,
            processing_class=tokenizer,
            refusals=["no"],
        )

    return make


@pytest.fixture
def aligned(tiny, tokenizer, tmp_path):
    def make(harmful, refusals=None, model=None, **settings):
        return AntibodyAlignmentTrainer(
            model=tiny if model is None else model,
            args=config(AntibodyAlignmentConfig, tmp_path, **settings),
            train_dataset=toy_rows(4),
            processing_class=tokenizer,
            harmful_dataset=harmful,
            refusal_dataset=refusals,
        )

    return make


# --- rows ------------------------------------------------------------------------------------------------------------

LONG = row("please " * 60, "yes")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", "b"), LONG], r"train_dataset\[1\].*prompt.* \d+ tokens.*max_length.* 32\b"),
        ([row("a", "b"), row("a", "")], r"train_dataset\[1\].*completion.*empty"),
        ([row("a", "b"), row("a", "  \n")], r"train_dataset\[1\].*completion.*empty"),
        ([row("", "b")], r"train_dataset\[0\].*prompt.*empty"),
        ([{"prompt": "a"}], r"train_dataset\[0\].*missing column.*`completion`"),
        ([{"question": "a", "answer": "b"}], r"train_dataset\[0\].*missing column.*`prompt`.*found.*`question`"),
        ([{"text": "a b c"}], r"train_dataset\[0\].*missing column"),
        ([{"prompt": "a", "completion": 3}], r"train_dataset\[0\].*completion"),
        ([{"messages": [{"role": "user", "content": "a"}]}], r"train_dataset\[0\].*last of `messages`.*assistant"),
        (
            [{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            "(?s)`usr`.*`user`",
        ),
        ([row("a", "b") | {"completion": [{"role": "user", "content": "b"}]}], r"train_dataset\[0\].*assistant"),
        ([], "train_dataset is empty"),
        ("data.jsonl", r"train_dataset.*`datasets\.Dataset`.*list.* str\b"),
        (7, r"train_dataset.*`datasets\.Dataset`.*list.* int\b"),
        (None, "`train_dataset` is missing"),
    ],
)
def test_rows_that_cannot_be_trained_on(sft, rows, message):
    with pytest.raises(TiterError, match=message):
        sft(rows, settings={"max_length": 32})


def test_the_longest_prompt_that_leaves_room_is_trained_on(sft, tokenizer):
    rows = [row("please " * 10, "yes and no and perhaps")]
    length = len(sft(rows).train_dataset[0]["prompt_ids"])
    with pytest.raises(TiterError, match=f"max_length above {length}"):
        sft(rows, settings={"max_length": length})
    trainer = sft(rows, settings={"max_length": length + 1, "max_steps": 1})
    assert len(trainer.train_dataset[0]["completion_ids"]) == 1
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_iterable_datasets_are_refused(sft):
    rows = IterableDataset.from_generator(lambda: iter(toy_rows(3)))
    with pytest.raises(TiterError, match="not IterableDataset") as error:
        sft(rows)
    assert "materialised" in error.value.hint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input_ids": [1, 2, 3]}], "need `labels` or `completion_mask`"),
        ([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}], "tail.*prompt"),
        ([{"input_ids": [1, 2, 3], "labels": [-100, 2, -100]}], "tail"),
        ([{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}], "tail"),
        ([{"input_ids": [1, 2, 3], "completion_mask": [1, 0, 1]}], "tail"),
        ([{"input_ids": [1] * 40, "labels": [-100] * 39 + [1]}], r"prompt.* 39 tokens.*max_length.* 32\b"),
    ],
)
def test_tokenised_rows_with_labels_elsewhere(sft, rows, message):
    with pytest.raises(TiterError, match=r"train_dataset\[0\].*" + message):
        sft(rows, settings={"max_length": 32})


def test_tokenised_rows_are_taken_as_they_are(sft):
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"input_ids": [5] * 40, "labels": [-100] + [5] * 39},
    ]
    trainer = sft(rows, settings={"max_length": 32})
    assert trainer.train_dataset[0] == {"prompt_ids": [1, 2], "completion_ids": [3, 4], "row": 0}
    assert len(trainer.train_dataset[1]["completion_ids"]) == 31, "max_length counts for them too"


def test_errors_in_an_evaluation_set_name_it(sft):
    with pytest.raises(TiterError, match=r"eval_dataset\[0\].*missing column"):
        sft(toy_rows(2), eval_dataset=[{"prompt": "a"}])
    with pytest.raises(TiterError, match=r"eval_dataset\['held out'\] is empty"):
        sft(toy_rows(2), eval_dataset={"held out": []})


# --- streams ---------------------------------------------------------------------------------------------------------


def test_errors_in_a_stream_name_it(booster):
    with pytest.raises(TiterError, match=r"harmful_dataset\[1\].*completion.*empty"):
        booster([row("a", "b"), row("a", "")])
    with pytest.raises(TiterError, match=r"harmful_dataset\[0\].*prompt.* \d+ tokens.* 60\b"):
        booster([LONG], max_length=60)
    with pytest.raises(TiterError, match="harmful_dataset is empty"):
        booster([])


@pytest.mark.parametrize("name", ["booster", "aligned"])
def test_alignment_without_harmful_rows(request, name):
    with pytest.raises(TiterError, match="needs `harmful_dataset`") as error:
        request.getfixturevalue(name)(None)
    assert "another method" in error.value.hint


@pytest.mark.parametrize("missing", ["harmful_dataset", "helpful_dataset"])
def test_a_gate_without_its_calibration(tiny, tokenizer, tmp_path, missing):
    streams = {"harmful_dataset": toy_rows(2), "helpful_dataset": toy_rows(2), "refusals": ["no"]}
    del streams[missing]
    with pytest.raises(TiterError, match=f"GateTrainer needs `{missing}`"):
        GateTrainer(
            model=tiny,
            args=config(GateConfig, tmp_path),
            train_dataset=toy_rows(4),
            processing_class=tokenizer,
            **streams,
        )


def test_antibody_alignment_without_refusals(aligned):
    with pytest.raises(TiterError, match=r"harmful_dataset\[1\] has no `refusal`") as error:
        aligned([row("a", "b", refusal="no"), row("c", "d", refusal=None)])
    assert "lambda_refusal=0" in error.value.hint
    trainer = aligned([row("c", "d")], lambda_refusal=0.0)
    (pool,) = trainer.pools(Encoder(trainer.template, None))
    assert set(pool) == {"harmful"}


def test_refusals_of_other_prompts(aligned):
    with refused("harmful_dataset[1]", "“pick a lock”", "refusal_dataset"):
        aligned([row("steal", "ok"), row("pick a lock", "ok")], [row("steal", "no"), row("sell", "no")])


def test_refusals_are_matched_by_prompt_not_by_place(aligned, tokenizer):
    harmful = [row("steal", "ok"), row("pick a lock", "ok")]
    trainer = aligned(harmful, [row("pick a lock", "no lock"), row("steal", "no stealing")])
    (pool,) = trainer.pools(Encoder(trainer.template, None))
    for harmful, refusal in zip(pool["harmful"], pool["refusal"], strict=True):
        asked, answered = tokenizer.decode(refusal.prompt), tokenizer.decode(refusal.branches[0])
        assert ("lock" in asked) == ("lock" in answered)
        assert refusal.prompt == harmful.prompt


@pytest.mark.parametrize("refusals", [[], "no", ["no", ""], ["no", 3]])
def test_generic_refusals_must_be_texts(tiny, tokenizer, tmp_path, refusals):
    with pytest.raises(TiterError, match="refusals"):
        AntibodyFinetuneTrainer(
            model=tiny,
            args=config(AntibodyFinetuneConfig, tmp_path),
            train_dataset=toy_rows(4),
            processing_class=tokenizer,
            refusals=refusals,
        )


# --- batches of one --------------------------------------------------------------------------------------------------


def test_antibody_refuses_a_batch_of_one(antibody):
    with refused("batch", "1", "plain SFT") as error:
        antibody(toy_rows(4), per_device_train_batch_size=1)
    assert "gradient_accumulation_steps" in error.value.hint
    with refused("batch", "1", "plain SFT"):
        antibody(toy_rows(1))
    antibody(toy_rows(4), per_device_train_batch_size=1, gradient_accumulation_steps=2)


@pytest.mark.parametrize(
    ("rows", "size", "steps", "drop_last", "fine"),
    [
        (9, 4, 1, False, False),
        (9, 4, 1, True, True),
        (9, 2, 4, False, False),
        (9, 2, 4, True, True),
        (9, 1, 4, False, False),
        (9, 1, 4, True, False),  # a micro-batch of one is full, so nothing is dropped
        (10, 4, 1, False, True),
        (13, 4, 2, False, True),  # the last optimizer batch holds 5
    ],
)
def test_antibody_refuses_a_last_batch_of_one(antibody, rows, size, steps, drop_last, fine):
    settings = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": steps,
        "dataloader_drop_last": drop_last,
        "max_steps": -1,
        "num_train_epochs": 1,
    }
    if not fine:
        with refused(f"{rows} rows", f"batches of {size * steps}", "last batch", "plain SFT") as error:
            antibody(toy_rows(rows), **settings)
        assert ("drop_last" in error.value.hint) == (size > 1)
        return
    trainer = antibody(toy_rows(rows), **settings)
    batches = []
    original = trainer.after_step
    trainer.after_step = lambda model: (batches.append(sum(len(r) for r, _ in trainer.seen)), original(model))
    trainer.train()
    assert min(batches) >= 2


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": True}, "fp16 loses"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "DeepSpeed"),
        ({"packing": True}, "`packing`.*packing"),
        ({"eval_packing": True}, "`eval_packing`.*packing"),
        ({"padding_free": True}, "`padding_free`.*packing"),
        ({"assistant_only_loss": True}, "`assistant_only_loss`.*packing"),
        ({"use_liger_kernel": True}, "`use_liger_kernel`.*packing"),
        ({"loss_type": "dft"}, "plain negative log-likelihood"),
        ({"label_smoothing_factor": 0.1}, "plain negative log-likelihood"),
        ({"completion_only_loss": False}, "(?s)prompts.*completion_only_loss"),
        ({"truncation_mode": "keep_end"}, "truncation_mode"),
        ({"neftune_noise_alpha": 5.0}, "NEFTune"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset"),
    ],
)
def test_settings_that_would_change_a_method(config_class, tmp_path, settings, message):
    with pytest.raises(TiterError, match=message) as error:
        config(config_class, tmp_path, **settings)
    assert error.value.hint


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (AntibodyAlignmentConfig, {"lambda_schedule": "cosine"}, "lambda_schedule.*`cosine`.*`cosine_ema`"),
        (AntibodyAlignmentConfig, {"lambda_schedule": "theorm"}, "`theorm`.*`theorem`"),
        (AntibodyFinetuneConfig, {"ratio": "sums"}, "`sums`.*`sum`"),
        (AntibodyFinetuneConfig, {"reduction": "tokens"}, "`tokens`.*`token`"),
        (GateConfig, {"signal": "prob"}, "`prob`.*`probe`"),
        (GateConfig, {"reduction": "samples"}, "`samples`.*`sample`"),
    ],
)
def test_settings_that_are_none_of_the_choices(config_class, tmp_path, settings, message):
    with pytest.raises(TiterError, match=f"(?s){message}"):
        config(config_class, tmp_path, **settings)


@pytest.mark.parametrize(
    ("config_class", "name", "value", "bounds"),
    [
        (AntibodyAlignmentConfig, "rho", 0.0, ["0"]),
        (AntibodyAlignmentConfig, "rho", float("nan"), ["0"]),
        (AntibodyAlignmentConfig, "lambda_refusal", -1.0, ["0"]),
        (AntibodyAlignmentConfig, "lambda_momentum", 1.0, ["0", "1"]),
        (AntibodyFinetuneConfig, "tau", 0.0, ["0"]),
        (AntibodyFinetuneConfig, "tau", float("nan"), ["0"]),
        (GateConfig, "probe_depth", 1.5, ["0", "1"]),
        (GateConfig, "ridge", 0.0, ["0"]),
        (GateConfig, "threshold", 1.5, ["0", "1"]),
        (BoosterConfig, "alpha", 0.0, ["0"]),
        (BoosterConfig, "alpha", float("nan"), ["0"]),
        (BoosterConfig, "lam", -1.0, ["0"]),
        (BoosterConfig, "min_perturbation", 1.5, ["0", "1"]),
        (BoosterConfig, "min_perturbation", float("nan"), ["0", "1"]),
    ],
)
def test_settings_out_of_range(config_class, tmp_path, name, value, bounds):
    with refused(f"`{name}`", "number", *bounds, f"`{value}`"):
        config(config_class, tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("stage", "name", "hint"),
    [
        ("align", "boster", "`booster`"),
        ("finetune", "antbody", "`antibody`"),
        ("align", "gate", "`antibody`, `booster`, `ctrap`"),
    ],
)
def test_unknown_methods(stage, name, hint):
    with refused(f"{stage} method", f"`{name}`") as error:
        registry.find(stage, name)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lamda": 5.0}, r"`arms\.a\.align`.*`lamda`.*`lam`"),
        ({"alpha": "1e-1"}, r"`arms\.a\.align\.alpha`.* number .*\b0\b.*1e\+09.*`1e-1`"),
        ({"learning_rate": "fast"}, r"`arms\.a\.align\.learning_rate`.* number .*`fast`"),
        ({"lr_scheduler_type": "constantly"}, "arms.a.align.*constantly"),
        ({"fp16": True}, "fp16"),
    ],
)
def test_settings_of_experiment_files(tmp_path, values, message):
    with pytest.raises(TiterError, match=f"(?s){message}"):
        registry.settings(registry.find("align", "booster"), values, "arms.a.align", str(tmp_path), 1)


@pytest.mark.parametrize("name", ["data_collator", "formatting_func", "compute_loss_func", "compute_metrics"])
def test_arguments_that_would_bypass_packing(sft, name):
    with pytest.raises(TiterError, match=f"`{name}`"):
        sft(toy_rows(2), **{name: lambda *_, **__: None})


# --- models ----------------------------------------------------------------------------------------------------------


def dropout_in_lora(tiny):
    from peft import get_peft_model

    # Before the first step an adapter's B is zero, so its dropout shows in gradients only.
    return get_peft_model(tiny, toy_lora(lora_dropout=0.1, init_lora_weights=True))


def dropout_in_attention(tiny):
    for layer in tiny.model.layers:
        layer.self_attn.attention_dropout = 0.1
    return tiny


def dropped_layers(tiny):
    """Noise that no module and no setting shows: now and then a layer is passed over, as by OPT's `layerdrop`."""
    layer = tiny.model.layers[0]
    forward = layer.forward

    def dropping(hidden, **kwargs):
        return hidden if layer.training and torch.rand([]) < 0.1 else forward(hidden, **kwargs)

    layer.forward = dropping
    return tiny


@pytest.mark.parametrize("with_dropout", [dropout_in_lora, dropout_in_attention, dropped_layers])
@pytest.mark.parametrize("fixture", ["booster", "aligned"])
def test_dropout_breaks_the_difference_of_gradients(request, tiny, harmful_rows, with_dropout, fixture):
    make = request.getfixturevalue(fixture)
    with refused("noise", "LlamaForCausalLM", "differ", "mask") as error:
        make(harmful_rows, model=with_dropout(tiny))
    assert "lora_dropout=0" in error.value.hint


def test_random_numbers_that_change_nothing_are_no_noise(booster, tiny, harmful_rows):
    layer = tiny.model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, **kwargs: forward(hidden, **kwargs) if torch.rand([]) >= 0 else hidden
    booster(harmful_rows, model=tiny)


def test_dropout_is_fine_where_it_breaks_nothing(sft, tiny):
    sft(toy_rows(4), model=dropout_in_lora(tiny), settings={"max_steps": 1}).train()


def test_a_model_without_trainable_weights(sft, tiny):
    with pytest.raises(TiterError, match="no trainable weights") as error:
        sft(toy_rows(2), model=tiny.requires_grad_(False))
    assert "peft_config" in error.value.hint


def test_half_precision_weights(sft, tiny):
    with pytest.raises(TiterError, match="float16"):
        sft(toy_rows(2), model=tiny.to(torch.float16))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_training_that_was_interrupted_is_no_model_yet(tmp_path, load):
    (tmp_path / "aligned" / "checkpoints").mkdir(parents=True)
    with pytest.raises(TiterError, match="has not come to its end") as error:
        load(str(tmp_path / "aligned"))
    assert "Give its command again" in error.value.hint


@pytest.mark.parametrize(("load", "part"), [(load_model, "config"), (load_tokenizer, "tokenizer")])
def test_models_that_are_not_there(load, part, tmp_path):
    with refused(part, "`nobody/nothing`") as error:
        load("nobody/nothing")
    assert "smollm2-135m-instruct" in error.value.hint
    with pytest.raises(TiterError, match=str(tmp_path)):
        load(str(tmp_path))


def test_an_adapter_that_is_not_there(tiny_folder, tmp_path):
    with pytest.raises(TiterError, match="No PEFT adapter"):
        load_model(str(tiny_folder), adapter=tmp_path)


def test_nothing_is_half_written(tiny, tokenizer, tmp_path):
    """An error in what the user gave comes before anything is written."""
    with pytest.raises(TiterError):
        AntibodyFinetuneTrainer(
            model=tiny,
            args=config(AntibodyFinetuneConfig, tmp_path / "out"),
            train_dataset=[row("a", "")],
            processing_class=tokenizer,
            refusals=["no"],
        )
    assert not (tmp_path / "out").exists()


def test_hidden_columns_do_not_reach_the_model(sft):
    """A true origin beside a row is for evaluation only."""
    rows = Dataset.from_list(
        [row("a", "b", origin="harmful", is_harmful=True), row("c", "d", origin="task", is_harmful=False)]
    )
    trainer = sft(rows)
    assert set(trainer.train_dataset.column_names) == {"prompt_ids", "completion_ids", "row"}
