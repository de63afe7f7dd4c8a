"""PTST: trains as SFT does, on rows without the safety prompt that its model is served with."""

import json

import pytest
from told import refused

from titer import methods
from titer.errors import TiterError
from titer.methods.finetune import PtstConfig
from titer.models import Template
from titer.testing import TRAINING, Trial, same, toy_rows, weights
from titer.testing.toy import toy

PTST, SFT = (methods.find("finetune", name) for name in ("ptst", "sft"))
PROMPT = "Be safe. Decline what harms."


def test_training_is_plain_fine_tuning_bit_for_bit(tmp_path):
    how = {"max_steps": 3, "max_grad_norm": 1.0}
    ours = Trial(PTST, {"system_prompt": PROMPT}, tmp_path).train("ptst", **how)
    assert same(weights(ours.model), weights(Trial(SFT, {}, tmp_path).train("sft", **how).model))
    assert not same(weights(ours.model), weights(Trial(SFT, {}, tmp_path).make("start").model))


def test_it_is_served_with_its_safety_prompt():
    template = Template(toy()[1])
    args = PtstConfig(output_dir="unused", system_prompt=PROMPT, **TRAINING)
    assert PTST.serving(args, template).system == PROMPT
    default = PTST.serving(PtstConfig(output_dir="unused", **TRAINING), template)
    assert "decline" in default.system
    assert SFT.serving is None


def with_system(text):
    rows = toy_rows(8)
    rows[3] = {**rows[3], "prompt": [{"role": "system", "content": text}, *rows[3]["prompt"]]}
    return rows


def test_a_row_with_the_safety_prompt_is_refused_and_another_system_prompt_is_not(tmp_path):
    trial = Trial(PTST, {"system_prompt": PROMPT}, tmp_path)
    with refused("train_dataset[3]", "system_prompt"):
        trial.make(rows=with_system(f"{PROMPT} You sum up reviews."))
    trial.make(rows=with_system("You sum up reviews."))


def test_a_template_that_writes_the_safety_prompt_itself_is_refused(tmp_path):
    import copy

    tokenizer = copy.deepcopy(toy()[1])
    tokenizer.chat_template = f"{{{{ '{PROMPT}' }}}}" + tokenizer.chat_template
    with refused("chat template", "system_prompt"):
        Trial(PTST, {"system_prompt": PROMPT}, tmp_path).make(tokenizer=tokenizer)


@pytest.mark.parametrize("empty", ["", " \n", None, 3])
def test_without_a_safety_prompt_it_would_be_plain_fine_tuning(empty):
    with pytest.raises(TiterError, match="system_prompt"):
        PtstConfig(output_dir="unused", system_prompt=empty, **TRAINING)


def test_tokenised_rows_cannot_be_looked_at(tmp_path):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 8
    with pytest.raises(TiterError, match="tokenised"):
        Trial(PTST, {"system_prompt": PROMPT}, tmp_path).make(rows=json.loads(json.dumps(rows)))
