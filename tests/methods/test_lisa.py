"""Lisa: both states and their proximal terms, written out step by step."""

import pytest
import references as ref
from one_step import RATE, reference, sgd
from told import refused

from titer import methods
from titer.testing import Trial, toy_harmful_rows, toy_rows
from titer.testing.toy import toy

LISA = methods.find("finetune", "lisa")
TURNS = {"alignment_steps": 1, "finetune_steps": 2}


def refusals():
    return ref.encode(toy()[1], toy_harmful_rows(), answer=lambda _, one: one["refusal"])


def drawn(trainer, number):
    pool = trainer._pools[0]["alignment"]
    return [(pool[place].prompt, pool[place].branches[0]) for place in trainer.drawn_rows("alignment", number)]


def written_out(rho, first_proximal, turns, steps):
    """Yield the weights' direction at each step, from the algorithm: w_f and w_g are what the other state left."""
    model = reference()
    here = [parameter.detach().clone() for parameter in model.parameters()]
    anchors, was = {"align": here, "tune": here}, None
    for step in range(steps):
        state = "align" if step % sum(turns.values()) < turns["alignment_steps"] else "tune"
        if was not in (None, state):
            anchors[was] = here
        was = state
        pairs = refusals() if state == "align" else ref.encode(toy()[1], toy_rows(8))
        model = reference(here)
        gradient = ref.gradient(model, ref.mean_nll(model, pairs))
        if step >= first_proximal:
            other = anchors["tune" if state == "align" else "align"]
            gradient = [g + rho * (w - a) for g, w, a in zip(gradient, here, other)]
        here = [w - RATE * g for w, g in zip(here, gradient)]
        yield gradient


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("turns", [TURNS, {"alignment_steps": 2, "finetune_steps": 1}])
def test_steps(tmp_path, turns, size, accumulation):
    """Seven steps; the proximal term begins after a tenth of them, with the second."""
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    _, course = sgd(LISA, tmp_path, rho=0.7, max_steps=7, **turns, **split)
    expected = list(written_out(0.7, 1, turns, 7))
    apart = [ref.relative_error(*pair) for pair in zip(course.directions, expected, strict=True)]
    assert max(apart) < 1e-10
    # The term matters, and so does whose weights it goes to: from the third step on these are not the start's.
    without = list(written_out(0.0, 1, turns, 7))
    assert ref.relative_error(course.directions[-1], without[-1]) > 1e-3


@pytest.mark.parametrize(("after", "first"), [(0.1, 2), (0.5, 6), (0.0, 1), (1.0, 11)])
def test_the_proximal_term_waits(tmp_path, after, first):
    """The step numbered n, from 0, has one where n > part · steps, as released; at step 0 it would be zero anyway."""
    _, course = sgd(LISA, tmp_path, rho=0.7, max_steps=10, proximal_after=after, **TURNS)
    expected = list(written_out(0.7, first, TURNS, 10))
    assert max(ref.relative_error(*pair) for pair in zip(course.directions, expected, strict=True)) < 1e-10


def test_the_readme_pairs_a_state_with_its_own_weights(tmp_path):
    """Which would hold nothing where a state begins; the released trainer, as the paper, takes the other's."""
    trainer, course = sgd(LISA, tmp_path, rho=0.7, max_steps=3, proximal_after=0.0, **TURNS)
    start, after_alignment, _, last = course.weights
    assert all((a == b).all() for a, b in zip(trainer.carried["aligned"], after_alignment))
    assert all((a == b).all() for a, b in zip(trainer.carried["tuned"], start))
    assert not all((a == b).all() for a, b in zip(trainer.carried["tuned"], last))


def test_short_steps_of_the_upload_have_a_full_batch_of_alignment_rows(tmp_path):
    """Five rows in 2 × 2: the second step of an epoch has one micro-batch, and four alignment rows all the same."""
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings = {"alignment_steps": 1, "finetune_steps": 1, "rho": 0.0}
    trainer, course = sgd(LISA, tmp_path, rows=toy_rows(5), max_steps=4, **settings, **split)
    assert len(trainer.micro_batches) == 1
    for step, number in ((0, 0), (2, 1)):
        pairs = drawn(trainer, number)
        assert len(pairs) == 4
        model = reference(course.weights[step])
        assert ref.relative_error(course.directions[step], ref.gradient(model, ref.mean_nll(model, pairs))) < 1e-10
    seen = [place for number in (0, 1) for place in trainer.drawn_rows("alignment", number)]
    assert sorted(seen) == list(range(8)), "each alignment row once before any comes again"
    # One turn longer, an alignment step falls on the short step.
    settings = {"alignment_steps": 2, "finetune_steps": 1, "rho": 0.0}
    trainer, course = sgd(LISA, tmp_path, rows=toy_rows(5), max_steps=2, **settings, **split)
    assert len(trainer.micro_batches) == 1
    pairs = drawn(trainer, 1)
    model = reference(course.weights[1])
    assert ref.relative_error(course.directions[1], ref.gradient(model, ref.mean_nll(model, pairs))) < 1e-10


def test_turns_shorter_than_a_step_are_refused(tmp_path):
    for name in TURNS:
        with refused(name, "1"):
            methods.settings(LISA, {name: 0}, "--set", str(tmp_path))
    with refused("rho", "0"):
        Trial(LISA, {"rho": -1.0}, tmp_path).make()


def test_a_training_that_never_reaches_the_upload_is_refused(tmp_path):
    args = LISA.config(output_dir=str(tmp_path), report_to="none", num_train_epochs=5, per_device_train_batch_size=10)
    with refused("100", "50", "alignment_steps"):
        LISA.check(args, 100)
    LISA.check(args, 10_000)
    args.max_steps = 101
    LISA.check(args, 100)
