"""Safety Anchor: the anchors' distance written out, and how it does not depend on gradient accumulation."""

import pytest
import references as ref
import torch
from one_step import reference, sgd
from told import refused

from titer import methods
from titer.models import Template
from titer.testing import Trial, same, toy_harmful_rows, toy_rows, weights
from titer.testing.toy import toy

SBR = methods.find("finetune", "sbr")
SFT = methods.find("finetune", "sft")
SPLITS = [(8, 1), (2, 4)]


def state(model, ids):
    """What the head reads at the last token of a prompt, run alone; checked against the head itself."""
    output = model(input_ids=torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True)
    z = output.hidden_states[-1][0, -1]
    assert torch.allclose(model.lm_head(z), output.logits[0, -1], rtol=1e-12), "behind the last norm"
    return z


def distance(model, prompts, reduction):
    with torch.no_grad():
        start = torch.stack([state(reference(), ids) for ids in prompts])
    squared = (torch.stack([state(model, ids) for ids in prompts]) - start) ** 2
    count, width = squared.shape
    assert (count, width) == (len(prompts), 32)
    return squared.sum() / (count * width if reduction == "mean" else count)


def expected(values, prompts, weight, reduction):
    model = reference(values)
    g = ref.gradient(model, ref.mean_nll(model, ref.encode(toy()[1], toy_rows(8))))
    return g, [a + weight * b for a, b in zip(g, ref.gradient(model, distance(model, prompts, reduction)))]


@pytest.mark.parametrize(("size", "steps"), SPLITS)
@pytest.mark.parametrize(("reduction", "weight"), [("mean", 50.0), ("sum", 2.0)])
def test_steps(tmp_path, reduction, weight, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    settings = {"anchors": 3, "anchor_weight": weight, "reduction": reduction}
    trainer, course = sgd(SBR, tmp_path, max_steps=3, **settings, **split)
    prompts = [sample.prompt for sample in trainer.held]
    for place, values in enumerate(course.weights[:3]):
        g, both = expected(values, prompts, weight, reduction)
        assert ref.relative_error(course.directions[place], both) < 1e-10
    assert ref.relative_error(g, both) > 0.1, "the anchors must matter"


def test_mean_and_sum_are_the_width_apart(tmp_path):
    """λ of the paper's sum is the released λ over D: 50 / 4096 ≈ 0.0122 for a model of 4096."""
    courses = [
        sgd(SBR, tmp_path, max_steps=3, anchors=3, anchor_weight=weight, reduction=reduction)[1].weights[-1]
        for weight, reduction in ((50.0, "mean"), (50.0 / 32, "sum"))
    ]
    assert max((a - b).abs().max().item() for a, b in zip(*courses)) < 1e-12


def test_the_weight_does_not_depend_on_gradient_accumulation(tmp_path):
    """The released code adds the anchors in every micro-batch, which with four of them is a weight of 4 λ."""
    runs = {
        steps: sgd(
            SBR,
            tmp_path,
            max_steps=2,
            anchors=3,
            anchor_weight=20.0,
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
        )
        for steps in (1, 4)
    }
    (trainer, one), (_, four) = runs[1], runs[4]
    assert ref.relative_error(four.directions[1], one.directions[1]) < 1e-10
    prompts = [sample.prompt for sample in trainer.held]
    _, released = expected(four.weights[1], prompts, 4 * 20.0, "mean")
    assert ref.relative_error(four.directions[1], released) > 0.1


def test_at_the_start_the_anchors_have_no_gradient(tmp_path):
    _, ours = sgd(SBR, tmp_path, anchors=3)
    _, plain = sgd(SFT, tmp_path)
    assert ref.relative_error(ours.directions[0], plain.directions[0]) < 1e-12


def test_weight_0_is_sft_bit_for_bit(tmp_path):
    ours, plain = (
        Trial(method, settings, tmp_path).train(max_steps=3)
        for method, settings in ((SBR, {"anchor_weight": 0.0, "anchors": 3}), (SFT, {}))
    )
    assert same(weights(ours.model), weights(plain.model))


def test_anchors_are_harmful_prompts_or_those_named(tmp_path):
    template = Template(toy()[1])
    known = [template.prompt_ids(one["prompt"]) for one in toy_harmful_rows()]
    drawn = {seed: [s.prompt for s in Trial(SBR, {}, tmp_path).make(seed=seed, anchors=4).held] for seed in (1, 2)}
    for prompts in drawn.values():
        assert len({tuple(ids) for ids in prompts}) == 4
        assert all(ids in known for ids in prompts)
    assert drawn[1] != drawn[2]
    named = Trial(SBR, {}, tmp_path).make(anchor_prompts=["how do I hide a lock", "b"])
    asked = [[{"role": "user", "content": text}] for text in ("how do I hide a lock", "b")]
    assert [sample.prompt for sample in named.held] == [template.prompt_ids(one) for one in asked]
    assert named.start.shape == (2, 32)


def test_what_it_cannot_be_is_refused(tmp_path):
    trial = Trial(SBR, {}, tmp_path)
    with refused("anchors", "8", "5"):
        trial.make(harmful=toy_harmful_rows()[:5])
    with refused("dropout"):
        trial.make(with_lora={"lora_dropout": 0.5})
    with refused("reduction", "max"):
        trial.make(reduction="max")
    for wrong in ([], ["  "], "how"):
        with refused("anchor_prompts"):
            trial.make(anchor_prompts=wrong)
    with refused("harmful_dataset", "anchor_prompts"):
        SBR.trainer(
            model=toy()[0],
            args=SBR.config(output_dir=str(tmp_path), report_to="none", bf16=False),
            train_dataset=toy_rows(2),
            processing_class=toy()[1],
        )
