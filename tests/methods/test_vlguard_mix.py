"""VLGuard's mix: g + λ·f, each the mean over its own tokens."""

import pytest
import references as ref
from one_step import reference, sgd
from told import refused

from titer import methods
from titer.testing import Trial, same, toy_harmful_rows, toy_rows, weights
from titer.testing.toy import toy

VLGUARD_MIX = methods.find("finetune", "vlguard_mix")


@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4)])
def test_step(tmp_path, size, steps):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    trainer, course = sgd(VLGUARD_MIX, tmp_path, lam=0.3, **split)
    pairs = ref.encode(toy()[1], toy_harmful_rows(), answer=lambda _, one: one["refusal"])
    drawn = trainer.drawn_rows("alignment", 0)
    assert sorted(drawn) == list(range(8)), "a full batch of alignment rows, each once"
    model = reference()
    g = ref.gradient(model, ref.mean_nll(model, ref.encode(toy()[1], toy_rows(8))))
    f = ref.gradient(model, ref.mean_nll(model, pairs))
    assert ref.norm(f) > 0.1 * ref.norm(g), "the alignment loss must matter"
    assert ref.relative_error(course.directions[0], [a + 0.3 * b for a, b in zip(g, f)]) < 1e-10


def test_lam_is_of_means_whatever_answers_are_long(tmp_path):
    """Of a mixture over tokens it would be another: here refusals have other lengths than the upload's answers."""
    _, course = sgd(VLGUARD_MIX, tmp_path, lam=1.0)
    model = reference()
    pairs = ref.encode(toy()[1], toy_harmful_rows(), answer=lambda _, one: one["refusal"])
    mixed = ref.gradient(model, ref.mean_nll(model, [*ref.encode(toy()[1], toy_rows(8)), *pairs]))
    assert ref.relative_error([each / 2 for each in course.directions[0]], mixed) > 1e-3


def test_lam_0_is_sft_bit_for_bit(tmp_path):
    plain, ours = (
        Trial(method, settings, tmp_path).train(max_steps=3)
        for method, settings in ((methods.find("finetune", "sft"), {}), (VLGUARD_MIX, {"lam": 0.0}))
    )
    assert same(weights(plain.model), weights(ours.model))


def test_what_it_cannot_be_is_refused(tmp_path):
    with refused("lam", "0"):
        methods.settings(VLGUARD_MIX, {"lam": -0.1}, "--set", str(tmp_path))
