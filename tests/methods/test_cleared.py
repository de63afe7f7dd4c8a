"""Rows that a reviewer found honest: gate and sieve let them teach whole, and no other method takes the setting."""

import copy

import pytest

from titer import methods
from titer.errors import TiterError
from titer.jobs import trainings
from titer.methods.finetune.gate import GateConfig, check_cleared


@pytest.mark.parametrize("name", ["gate", "sieve"])
def test_cleared_rows_are_not_harmful(tiny, tokenizer, harmful_rows, helpful_rows, tmp_path, name):
    method = methods.find("finetune", name)
    rows = [*harmful_rows[:3], *helpful_rows[:3]]

    def probabilities(cleared):
        values = {"signal": "both", "ridge": 1.0, "threshold": None, "cleared": cleared}
        args = methods.settings(method, values, "settings", str(tmp_path), 0)
        trainer = method.trainer(
            model=copy.deepcopy(tiny),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=trainings.lora_config({}),
            harmful_dataset=harmful_rows,
            helpful_dataset=helpful_rows,
        )
        return trainer.probability.tolist()

    found = probabilities([])
    assert min(found) > 0
    found[0] = found[4] = 0
    assert probabilities([0, 4]) == pytest.approx(found)


def test_rows_that_there_are_not_are_refused():
    with pytest.raises(TiterError, match="row 6, and the upload has 6"):
        check_cleared(GateConfig("unused", cleared=[5, 6]), 6)
    with pytest.raises(TiterError, match="cleared"):
        methods.settings(methods.find("finetune", "gate"), {"cleared": [-1]}, "settings", "unused", 0)


def test_other_methods_know_no_such_setting():
    with pytest.raises(TiterError, match="Unknown key in `settings`: `cleared`"):
        methods.settings(methods.find("finetune", "antibody"), {"cleared": [1]}, "settings", "unused", 0)
