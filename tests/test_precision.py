"""A base may be coarse; what is trained is float32."""

import pytest
import torch
from peft import get_peft_model

from titer import methods
from titer.models import add_adapter
from titer.testing import toy_model, toy_tokenizer
from titer.testing.toy import toy_lora
from titer.testing.trials import Trial

BOOSTER = methods.find("align", "booster")


@pytest.fixture
def base():
    """A base in bfloat16, as titer loads models on accelerators."""
    return toy_model(toy_tokenizer()).bfloat16()


@pytest.mark.parametrize("quantised", [False, True])
def test_an_adapter_trains_in_float32_on_a_coarse_base(base, tmp_path, quantised):
    base.is_loaded_in_8bit = quantised  # which is all that TRL asks
    trial = Trial(BOOSTER, {"bf16": True, "min_perturbation": 0.0}, tmp_path)
    trainer = trial.make(model=base)
    trainer.train()
    trained = trainer.trainable
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    moments = [moment for state in trainer.optimizer.state.values() for moment in state.values() if moment.ndim]
    assert len(moments) == 2 * len(trained)
    assert {moment.dtype for moment in moments} == {torch.float32}
    frozen = [weight for weight in trainer.model.parameters() if not weight.requires_grad]
    assert {weight.dtype for weight in frozen} == {torch.bfloat16}


@pytest.mark.parametrize("quantised", [False, True])
def test_an_adapter_that_goes_on_keeps_every_bit(base, tmp_path, quantised):
    before = get_peft_model(toy_model(toy_tokenizer()), toy_lora())
    with torch.no_grad():
        for weight in before.parameters():
            weight.add_(1 / 3)  # what bfloat16 does not hold
    before.save_pretrained(tmp_path / "adapter")
    base.is_loaded_in_8bit = quantised
    model = add_adapter(base, tmp_path / "adapter", trainable=True)
    learned = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = BOOSTER.trainer(
        model=model,
        args=BOOSTER.config(output_dir=str(tmp_path), report_to="none", bf16=True, disable_tqdm=True),
        train_dataset=[{"prompt": "a", "completion": "b"}],
        harmful_dataset=[{"prompt": "c", "completion": "d"}],
        processing_class=toy_tokenizer(),
    )
    assert learned
    for name, weight in trainer.trainable.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, learned[name])
