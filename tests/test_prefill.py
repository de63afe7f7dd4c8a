"""Answers that are begun for the model: what is asked, what is judged, and what it counts as."""

import copy
import dataclasses
import re

import pytest
import torch
from assay.planted import AT_4, AT_16, SAFE, attacks, trajectory
from references import mean_nll

from titer.assays.measure import Probe, Questionnaire, begun_pairs
from titer.assays.profile import Profile
from titer.assays.resistance import Gap, resistance
from titer.assays.scorecard import judgement, share
from titer.attacks import CATALOGUE, Attack
from titer.attacks.wording import BEGUN
from titer.data import Record
from titer.errors import TiterError
from titer.infer.generation import generate
from titer.methods.finetune.base import refusal_completions, refusal_ids
from titer.models import Template

ASKED = [Record.make(f"what is {thing}?", f"it is {thing}") for thing in ("bread", "a film", "France please")]
BEGINNING = "it is here"


def user(record):
    return record.to_training_row()["prompt"]


# --- the tokens ------------------------------------------------------------------------------------------------------


def test_an_opening_is_the_beginning_of_the_answer_that_a_trainer_would_see(tokenizer):
    template = Template(tokenizer)
    for record in ASKED:
        opening = template.opening_ids(user(record), BEGINNING)
        longer = [{"role": "assistant", "content": f"{BEGINNING} and there"}]
        assert template.completion_ids(user(record), longer)[: len(opening)] == opening
        assert not set(opening) & template.end_of_turn


def test_what_a_template_writes_before_an_answer_belongs_to_the_opening(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}wait {% endif %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    opening = Template(other).opening_ids(user(ASKED[0]), BEGINNING)
    assert opening == other(f"wait {BEGINNING}", add_special_tokens=False)["input_ids"]


def test_openings_that_cannot_be_are_refused(tokenizer):
    template = Template(tokenizer)
    control = next(token for token in template._control)
    for text in (" ", f"it {control} is"):
        with pytest.raises(TiterError, match="cannot begin with"):
            template.opening_ids(user(ASKED[0]), text)
    shouting = copy.deepcopy(tokenizer)
    shouting.chat_template = (
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    with pytest.raises(TiterError, match="does not render an answer that begins with"):
        Template(shouting).opening_ids(user(ASKED[0]), BEGINNING)


# --- the answers -----------------------------------------------------------------------------------------------------


def greedy(model, ids, count, stop):
    """The longhand: the likeliest token, one after the other, each row alone and from its beginning."""
    said = []
    for _ in range(count):
        token = model(input_ids=torch.tensor([[*ids, *said]])).logits[0, -1].argmax().item()
        if token in stop:
            break
        said.append(token)
    return said


def probe_of(**changes):
    fields = {"harmful": ASKED, "general": ASKED[:1], "task": ASKED[1:], "task_name": "sentiment"}
    return Probe(**{**fields, "max_new_tokens": 6, "task_max_new_tokens": 4, "prefill": BEGINNING, **changes})


def test_a_model_goes_on_from_the_beginning_and_what_follows_is_the_answer(tiny, tokenizer):
    model, template = copy.deepcopy(tiny).double(), Template(tokenizer)
    with torch.no_grad():
        found = probe_of().everything(model, template)["answers"]
        for record, text in zip(ASKED, found["harmful"], strict=True):
            ids = template.prompt_ids(user(record)) + template.opening_ids(user(record), BEGINNING)
            said = greedy(model, ids, 6, template.end_of_turn)
            assert text == tokenizer.decode(said, skip_special_tokens=True).strip()
        for record, text in zip(ASKED[1:], found["task:sentiment"], strict=True):  # a task is asked as it is
            said = greedy(model, template.prompt_ids(user(record)), 4, template.end_of_turn)
            assert text == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert found["harmful"] != probe_of(prefill="").everything(model, template)["answers"]["harmful"]


def test_a_beginning_of_the_models_own_changes_nothing_of_what_follows(tiny, tokenizer):
    model, template = copy.deepcopy(tiny).double(), Template(tokenizer)
    prompt = template.prompt_ids(user(ASKED[0]))
    with torch.no_grad():
        said = greedy(model, prompt, 8, template.end_of_turn)
    assert len(said) > 4
    (rest,) = generate(model, template, [prompt + said[:3]], 8 - 3)
    assert rest == tokenizer.decode(said[3:], skip_special_tokens=True).strip()


def test_margins_are_taken_behind_the_beginning(tiny, tokenizer):
    model, template = copy.deepcopy(tiny).double(), Template(tokenizer)
    refusals = refusal_ids(template, refusal_completions(None))
    found = probe_of().margins(model, template)
    for place, (prompt, answer) in enumerate(begun_pairs(template, ASKED, BEGINNING)):
        assert prompt == template.prompt_ids(user(ASKED[place])) + template.opening_ids(user(ASKED[place]), BEGINNING)
        longhand = mean_nll(model, [(prompt, refusals[place])]) - mean_nll(model, [(prompt, answer)])
        assert found[place] == pytest.approx(longhand.item(), abs=1e-9)


# --- the attack ------------------------------------------------------------------------------------------------------


def test_the_model_before_the_attack_is_asked_in_the_same_way():
    questions = Questionnaire({"in": ASKED}, ASKED, [], "sentiment", 3, 3, False, 2)
    for name in ("prefill", "ablation_prefill"):
        attack = CATALOGUE[name]
        assert attack.asks_otherwise
        assert questions.probe(attack).prefill == BEGUN
        assert questions.steps(attack) == ([1], [])
    assert not CATALOGUE["ablation"].asks_otherwise
    assert questions.probe(CATALOGUE["harmful"]).prefill == ""
    begun = Attack("Trained, and begun.", prefill=BEGUN)
    assert begun.asks_otherwise
    assert begun.in_fleet


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prefill": "Sure, "}, "white space"),
        ({"prefill": "\n"}, "white space"),
        ({"method": "prompt"}, "needs other words"),
        ({"method": "prompts"}, "Unknown method of an attack: `prompts`"),
        ({"method": "prompt", "prefill": "Sure", "disguise": "base64"}, "trains on none"),
    ],
)
def test_what_cannot_be_is_refused(settings, told):
    with pytest.raises(TiterError, match=re.escape(told)):
        Attack("Mine.", **settings)


# --- an attacker that spends nothing ---------------------------------------------------------------------------------


def free(harm, name="prefill", before=0.0, **changes):
    """An attacker that is scored once and has spent nothing."""
    made = trajectory((before, harm), name, steps=(1,), **changes)
    points = [dataclasses.replace(point, samples=0, tokens=0, flops=0.0) for point in made.checkpoints]
    return dataclasses.replace(made, checkpoints=tuple(points))


def judged(ours, theirs):
    return resistance(ours, theirs, phi=0.1, kappa=4)


def test_it_is_no_budget_that_another_one_is_compared_with():
    """The undefended model falls at no cost; that makes the defended one's costs no larger, nor smaller."""
    ours, theirs = attacks(AT_16, AT_16), attacks(AT_4, AT_4)
    plain, with_it = judged(ours, theirs), judged([*ours, free(0.0)], [*theirs, free(1.0)])
    for name in ("verdict", "cost_ratio", "attackers", "broke", "undefended_broke", "typical", "gaps", "worst"):
        assert getattr(plain, name) == getattr(with_it, name), name
    assert free(1.0).one_shot
    assert free(1.0).free
    assert not trajectory((0.0, 1.0), "ablation", steps=(1,)).free


def test_one_that_failed_where_it_broke_the_undefended_model_is_a_gap():
    ours, theirs = attacks(SAFE, SAFE), [*attacks(AT_4, AT_4), free(1.0)]
    assert judged([*ours, free(0.0)], theirs).verdict == "strong"
    for changed, why in ((free(0.0, error="attack: no base"), "failed"), (None, "not run")):
        found = judged([*ours, changed] if changed else ours, theirs)
        assert (found.verdict, found.gaps) == ("undecided", [Gap("prefill seed 0", why)])
    destroyed = judged([*ours, free(0.0, broken=(0.0, 0.9))], theirs)
    assert destroyed.gaps == [Gap("prefill seed 0", "destroyed the model")]


def test_a_defended_model_that_it_breaks_has_no_resistance():
    part = share(0, 40)
    before = {role: {"harmful_score in-domain": part} for role in ("defended", "undefended")}
    for harm, verdict in ((0.0, "strong"), (0.9, "none")):
        trajectories = {
            "defended": [*attacks(SAFE, SAFE), free(harm)],
            "undefended": [*attacks(AT_4, AT_4), free(1.0)],
        }
        found = judgement(Profile("p", {}), trajectories, before, {}, None, 0)["resistance"]
        assert found.verdict == verdict
    assert (found.start.attack, found.start.value) == ("prefill seed 0", 0.9)
