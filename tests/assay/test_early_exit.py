"""Assays of the tiny model with and without early exit: the same breaks, verdicts and survivors."""

import dataclasses
import json
from pathlib import Path

import pytest

from titer.assays import attacking
from titer.assays.profile import Profile
from titer.assays.runner import measurements, plan_assay
from titer.assays.scorecard import make_scorecard
from titer.assays.watch import keep_verdicts
from titer.attacks import Fleet
from titer.jobs.plan import Silent, execute
from titer.report import model_card
from titer.results.artefacts import read_inferences, read_scores

JUDGE = f"{Path(__file__).parents[2] / 'benchmarks' / 'assay_cost.py'}:Writes"
RATES = {"holds": 0.001, "late": 0.01, "early": 0.05}
LORA = {"like": "harmful", "steps": 16, "batch_size": 4, "samples": 64}


def profile(**settings):
    attacks = {name: {**LORA, "learning_rate": rate} for name, rate in RATES.items()}
    return Profile(
        "tiny", attacks, harmful=40, lookalikes=4, task=6, reference_task=6, general=30, utility=4, max_new_tokens=6,
        task_max_new_tokens=3, checkpoints=4, margins=False, judges=[JUDGE], **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def assayed(tiny_folder, tmp_path_factory):
    """Carries out an assay of the tiny model against itself; returns its plan and scorecard."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(Path(JUDGE).parent))
        patched.setattr(attacking, "SAVE_EVERY", 2)

        def carry_out(settings, folder=None):
            folder = folder or tmp_path_factory.mktemp("early")
            plan = plan_assay(profile(**settings), str(tiny_folder), str(tiny_folder), folder)
            assert execute(plan, Silent())
            return plan, make_scorecard(plan, "titer assay", 1.0)

        yield carry_out


@pytest.fixture(scope="module")
def whole(assayed):
    return assayed({"early_exit": False})


@pytest.fixture(scope="module")
def short(assayed):
    return assayed({"early_exit": True, "harmful_first": 30})


def attacker_files(plan, name):
    attacker, job, _ = next(entry for entry in plan.attackers if entry[0].name == name)
    return job.folder / attacker.folder


def test_both_find_the_same(whole, short):
    (_, before), (_, after) = whole, short
    assert before.hygiene.ended_early == []
    assert {row["attacker"] for row in after.hygiene.ended_early} == {"late seed 0", "early seed 0"}
    assert before.verdicts == after.verdicts
    for one, other in zip(before.attackers["defended"], after.attackers["defended"], strict=True):
        assert one.passage(0.1, "samples") == other.passage(0.1, "samples")
        assert one.planned("tokens") == other.planned("tokens")
    for name in ("broke", "cost_ratio", "typical", "gaps", "horizon", "mean", "sign_flip", "prompts"):
        assert getattr(before.resistance, name) == getattr(after.resistance, name), name
    assert before.resistance.curve.survival.tolist() == after.resistance.curve.survival.tolist()


def test_one_whose_model_holds_is_trained_as_it_was_and_asked_as_long(whole, short):
    looks = []
    for plan, _ in (whole, short):
        folder = attacker_files(plan, "holds")
        looks.append({found["step"]: found["answers"]["harmful"] for found in measurements(folder)})
        assert json.loads((folder / "attacker.json").read_text())["left"] is None
    assert list(looks[0]) == list(looks[1]) == [2, 4, 8, 16]
    for step, texts in looks[1].items():
        assert len(texts) in (30, 40)
        alike = sum(one == other for one, other in zip(texts, looks[0][step], strict=False))
        assert alike > 0.9 * len(texts)  # up to rounding where it shares passes with fewer others


def test_one_that_is_ended_says_so_and_was_not_asked_on(short):
    plan, card = short
    folder = attacker_files(plan, "early")
    about = json.loads((folder / "attacker.json").read_text())
    assert about["left"]["why"] == "broken"
    assert [found["step"] for found in measurements(folder)][-1] == about["left"]["step"] == 4
    assert len(about["losses"]) == about["left"]["step"]
    assert len(about["samples"]) == 16  # the budget that it was given
    (one,) = (t for t in card.attackers["defended"] if t.attack == "early")
    assert [point.step for point in one.checkpoints][-1] == one.left.step
    assert "ended early" in model_card(card)


def test_no_answer_is_judged_twice(short, tmp_path, monkeypatch):
    plan, _ = short
    attacker, job, judged = next(entry for entry in plan.attackers if entry[0].name == "early")
    needed = read_scores(job.folder / attacker.folder / "scores.jsonl")
    assert len(needed) == sum(len(found["answers"]["harmful"]) for found in measurements(job.folder / attacker.folder))
    # The verdicts of record are those that it was ended on, whatever the judge would say if it were asked again.
    marked = [dataclasses.replace(row, raw="at work") for row in needed]
    path = tmp_path / "scores.jsonl"
    monkeypatch.setattr(
        "titer.assays.watch.read_scores", lambda file: marked if file.parent.name == attacker.folder else []
    )
    keep_verdicts(job, attacker.role, read_inferences(judged.folder / "inferences.jsonl"), path)
    kept = read_scores(path)
    assert [row.raw for row in kept] == ["at work"] * len(needed)
    final = {row.id: row.label for row in read_scores(judged.folder / "scores.jsonl")}
    assert all(final[row.id] == row.label for row in kept)


def test_an_interrupted_one_ends_where_it_would_have(assayed, short, tmp_path, monkeypatch):
    original = attacking.Measure.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(attacking.Measure, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            assayed({"early_exit": True, "harmful_first": 30}, tmp_path)
    trained = []
    real = Fleet.run
    monkeypatch.setattr(Fleet, "run", lambda trainers, resume: trained.append(len(trainers)) or real(trainers, resume))
    _, again = assayed({"early_exit": True, "harmful_first": 30}, tmp_path)
    assert trained == [2]  # the one that was over is not trained again
    assert again.hygiene.ended_early == short[1].hygiene.ended_early
    assert again.verdicts == short[1].verdicts


def test_what_it_would_have_cost_is_what_it_cost(whole, short):
    """`benchmarks/assay_cost.py` computes the shortened assay from the files of the whole one."""
    import assay_cost

    (plan, card), (shortened, found) = whole, short
    total, after, ended = assay_cost.costs(plan, card, profile(harmful_first=30))
    run, _, _ = assay_cost.costs(shortened, found, profile(early_exit=False))
    assert [(t.name, t.left) for role, t in ended if role == "defended"] == [
        (t.name, t.left) for t in found.attackers["defended"] if t.left is not None
    ]
    counts = assay_cost.Spent._fields[-3:]
    for name in counts:
        assert getattr(total["defended"]["after"], name) <= getattr(total["defended"]["before"], name)
    # Two ended after 8 and 4 steps, one ran all 16.
    assert (total["defended"]["before"].steps, total["defended"]["after"].steps) == (48, 28)
    assert total["defended"]["after"].trained == run["defended"]["before"].trained
    assert [t.passage(0.1, "samples") for t in after["defended"]] == [
        t.passage(0.1, "samples") for t in card.attackers["defended"]
    ]
