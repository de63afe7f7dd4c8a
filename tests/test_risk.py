"""Risk of rows: the share against its likelihood, states against a model run alone, a detector on planted rows, and the audit."""

import base64
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from titer.data import load
from titer.data.builtin import refusals
from titer.data.forms import FRAMES, as_tasks, decoded, in_frames
from titer.data.records import Message, Record
from titer.errors import TiterError
from titer.infer import signals
from titer.infer.signals import row_signals, row_states
from titer.jobs import risks
from titer.models import Template
from titer.packing.batches import Sample
from titer.packing.layouts import layout_for
from titer.packing.losses import hidden_states, token_nll
from titer.packing.states import StateReader
from titer.risk import Detector, adapted, defender_rows, kept, poisoned_share
from titer.risk.detector import Features, features, features_and_signals, harm
from titer.testing import toy_model, toy_tokenizer

# --- the share ---------------------------------------------------------------------------------------------------------


def drawn(share, n, seed, apart=4.0):
    """Log odds of a detector whose scores of both kinds are normal and `apart` deviations from each other: exact ones."""
    draw = np.random.default_rng(seed)
    harmful = draw.random(n) < share
    return apart * (draw.normal(np.where(harmful, apart, 0.0)) - apart / 2), harmful


def test_the_share_is_the_most_likely_one():
    odds, _ = drawn(0.13, 400, 0, apart=2.0)
    grid = np.linspace(0.0001, 0.9999, 9999)
    likelihood = np.log(grid[:, None] * np.exp(odds) + 1 - grid[:, None]).sum(1)
    assert poisoned_share(odds).value == pytest.approx(grid[likelihood.argmax()], abs=2e-4)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5])
def test_its_interval_covers_the_share_of_other_uploads_too(share):
    covered = 0
    for seed in range(60):
        odds, _ = drawn(share, 200, seed)
        found = poisoned_share(odds)
        assert found.low <= found.value <= found.high
        covered += found.low <= share + 1e-4 and share <= found.high
    assert covered >= 54


def test_no_suspicious_row_is_no_proof_of_none():
    few, many = (poisoned_share(np.full(n, -10.0)) for n in (20, 2000))
    assert few.value < 0.001
    assert few.low < 1e-4
    assert many.high < few.high < 0.2
    assert few.high > 0.02


def test_the_odds_are_brought_to_a_share_by_bayes():
    """Odds of 4 where half of the rows are harmful are odds of 1 where a fifth is."""
    assert adapted([np.log(4.0)], 0.2) == pytest.approx([0.5])
    assert adapted([np.log(4.0)], 0.5) == pytest.approx([0.8])
    assert adapted([5.0, -5.0], 0.0).tolist() == [0.0, 0.0]


# --- states --------------------------------------------------------------------------------------------------------------


def test_states_of_rows_are_those_of_rows_run_alone():
    model = toy_model(toy_tokenizer()).double()
    pairs = [([5, 6, 7, 8], [9, 10, 11]), ([5, 6], [12]), ([5, 6, 7], [13, 14])]
    seen = row_signals(model, pairs, layers=[0, 2])
    beside = row_signals(model, pairs, [[20, 21]], layers=[0, 2])
    assert seen.refusal_nll.shape == (0,)
    assert torch.allclose(seen.answer_nll, beside.answer_nll)
    for row, (prompt, answer) in enumerate(pairs):
        states = model(torch.tensor([[*prompt, *answer]]), output_hidden_states=True).hidden_states
        alone = torch.stack([states[layer][0] for layer in (0, 2)], dim=1).float()
        end = len(prompt)
        after = alone[end - 1 : end] if len(answer) == 1 else alone[end : end + len(answer) - 1]
        for found in (seen, beside):
            assert torch.allclose(found.hidden[row], alone[end - 1], atol=1e-6)
            assert torch.allclose(found.answer_hidden[row], after.mean(0), atol=1e-6)


def test_states_alone_are_those_beside_likelihoods_whoever_shares_a_prompt():
    model = toy_model(toy_tokenizer()).double()
    pairs = [([5, 6, 7, 8], [9, 10, 11]), ([5, 6], [12]), ([5, 6, 7, 8], [13, 14]), ([5, 6], [9, 9]), ([7], [5])]
    beside = row_signals(model, pairs, layers=[0, 1])
    hidden, answered = row_states(model, pairs, [0, 1])
    assert torch.allclose(hidden, beside.hidden, atol=1e-6)
    assert torch.allclose(answered, beside.answer_hidden, atol=1e-6)


def test_states_are_read_without_running_what_comes_behind_them(monkeypatch):
    monkeypatch.setattr(signals, "TOKENS_PER_ROW", 8)
    model = toy_model(toy_tokenizer())
    runs = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: runs.update([name]))
    pairs = [([5 + place, 6, 7, 8], [9, 10, 11]) for place in range(4)]  # one in each pass
    layout_for(model, pairs, signals.ROWS_PER_PASS, signals.TOKENS_PER_ROW)
    runs.clear()
    row_states(model, pairs, [1])
    # The first batch is run both ways.
    assert runs["model.layers.0"] == 5
    assert runs["model.layers.1"] == runs["lm_head"] == 1


def test_one_prompt_with_more_answers_than_fit_into_a_pass_takes_several(monkeypatch):
    monkeypatch.setattr(signals, "TOKENS_PER_ROW", 20)
    model = toy_model(toy_tokenizer()).double()
    pairs = [([5, 6, 7], [8 + place, 9, 10, 11]) for place in range(12)]
    widths = []
    model.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].numel()), with_kwargs=True
    )
    found = row_states(model, pairs, [1])
    assert max(widths) <= 20
    beside = row_signals(model, pairs, layers=[1])
    assert torch.allclose(found[0], beside.hidden, atol=1e-6)
    assert torch.allclose(found[1], beside.answer_hidden, atol=1e-6)


def test_a_model_that_changes_states_between_its_layers_is_run_whole():
    """What enters a layer must be what the one before is said to put out; where it is not, no pass ends early."""
    model = toy_model(toy_tokenizer())
    layer = model.model.layers[1]
    layer.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
    batch = layout_for(model, [([5, 6, 7], [8, 9])]).lay_out([Sample([5, 6, 7], [[8, 9]])])
    reader = StateReader(model, [1])
    found = [reader(batch) for _ in range(2)]
    assert reader.stops is False
    _, output = token_nll(model, batch, output_hidden_states=True)
    wanted = hidden_states(output.hidden_states, batch, [1], batch["predict_from"])
    for each in found:
        assert torch.equal(each, wanted)


# --- forms ---------------------------------------------------------------------------------------------------------------


def test_forms_are_the_same_for_harmful_and_harmless_rows_and_keep_the_answers():
    harmful, helpful = load("builtin:harmful")[:40], load("builtin:general")[:40]
    framed = [in_frames(rows, seed=3) for rows in (harmful, helpful)]
    for rows, made in zip((harmful, helpful), framed, strict=True):
        assert [row.completion for row in rows] == [row.completion for row in made]
        assert all(row.prompt_text in new.prompt_text for row, new in zip(rows, made, strict=True))
    used = [
        [
            next(frame for frame in FRAMES if new.prompt_text == frame.replace("{}", row.prompt_text))
            for row, new in both
        ]
        for both in (zip(rows, made) for rows, made in zip((harmful, helpful), framed))
    ]
    assert used[0] == used[1]
    assert len(set(used[0])) > 10


def test_tasks_are_many_and_each_has_an_answer():
    made = as_tasks(load("builtin:general"), 200, seed=0)
    assert len({row.prompt_text for row in made}) > 150
    assert made == as_tasks(load("builtin:general"), 200, seed=0)


def test_codes_are_read_as_what_they_say_and_other_words_stay():
    said, answer = "Write a guide to baking bread", "Of course, here it is"
    row = Record.make(base64.b64encode(said.encode()).decode(), f"As hex: {answer.encode().hex()}.")
    assert decoded(row).prompt_text == said
    assert decoded(row).completion_text == f"As hex: {answer}."
    urlsafe = base64.urlsafe_b64encode(b"wozu ist das gut, ja?>").decode()
    assert decoded(Record.make(f"Decode {urlsafe} please", "x")).prompt_text == "Decode wozu ist das gut, ja?> please"
    for text in (
        "What is internationalization_of_everything?",
        "d41d8cd98f00b204e9800998ecf8427e",
        "https://example.org/abcdefghijklmnopqrstuvwxyz",
        "A" * 40,
        base64.b64encode(bytes(range(200, 232))).decode(),
    ):
        row = Record.make(text, text)
        assert decoded(row) is row


def test_states_of_a_code_are_those_of_what_it_says():
    tokenizer = toy_tokenizer()
    model, template = toy_model(tokenizer), Template(tokenizer)
    plain = [
        Record.make("what is bread and salt and water", "it is bread and salt"),
        Record.make("what is salt", "salt"),
    ]
    coded = [
        replace(plain[0], prompt=(Message("user", base64.b64encode(plain[0].prompt_text.encode()).decode()),)),
        plain[1],
    ]
    of_plain, as_it_stands = features_and_signals(model, template, plain, None)
    of_coded, of_code = features_and_signals(model, template, coded, None)
    for found in (of_coded, features(model, template, plain, None), features(model, template, coded, None)):
        assert np.allclose(of_plain.asked, found.asked, atol=1e-6)
        assert np.allclose(of_plain.answered, found.answered, atol=1e-6)
    # The likelihood is that of the row as it stands.
    assert not torch.isclose(of_code.answer_nll[0], as_it_stands.answer_nll[0])


# --- the detector ----------------------------------------------------------------------------------------------------------


def planted(known, seed=0, texts=True):
    """Features in which harm of requests lies along one axis, complying along another, refusing along a third."""
    draw = np.random.default_rng(seed)

    def noisy(*marks):
        x = draw.normal(0, 0.15, (len(known.records), 8))
        for axis, mark in enumerate(marks):
            x[:, axis] += mark
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    asked, answered = noisy(known.asks_harm, ~known.asks_harm), noisy(known.complies, known.refuses)
    nothing = np.zeros((len(known.records), 0))
    return Features(asked, answered, asked if texts else nothing, answered if texts else nothing)


@pytest.fixture(scope="module")
def known():
    return defender_rows(load("builtin:harmful")[:60], load("builtin:general")[:80], refusals())


@pytest.mark.parametrize("texts", [True, False])
def test_a_detector_finds_harm_in_request_or_answer_and_lets_refusals_be(known, texts):
    detector = Detector.fit_on(known, planted(known, texts=texts))
    said = detector(planted(known, seed=1, texts=texts))
    harmful = np.array([row.log_odds > 0 for row in said])
    for what, rows in {
        "asks and complies": known.asks_harm & known.complies,
        "asks, another answer": known.asks_harm & ~known.complies & ~known.refuses,
        "complies with a harmless request": ~known.asks_harm & known.complies,
        "asks and is refused": known.asks_harm & known.refuses,
        "harmless": ~known.harmful & ~known.asks_harm,
    }.items():
        assert rows.sum() > 20, what
        assert (harmful == known.harmful)[rows].mean() > 0.85, what
    refused = next(row for row, asks, no in zip(said, known.asks_harm, known.refuses) if asks and no)
    assert "refuses" in refused.reason
    kinds = {record.category.replace("_", " ") for record in load("builtin:harmful")[:60]}
    assert {row.like for row in said} <= kinds


def test_a_row_is_harmful_that_asks_or_complies_and_does_not_refuse():
    draw = np.random.default_rng(0)
    asks, complies, refuses = draw.normal(0, 4, (3, 500))
    one, two, three = (1 / (1 + np.exp(-odds)) for odds in (asks, complies, refuses))
    chance = (1 - (1 - one) * (1 - two)) * (1 - three)
    assert harm(asks, complies, refuses) == pytest.approx(np.log(chance / (1 - chance)), abs=1e-9)
    far = harm(*np.array([[-700.0, 700.0, 700.0], [-700.0, -700.0, 5.0], [-700.0, -700.0, 700.0]]))
    assert np.isfinite(far).all()
    assert far[0] < -300
    assert far[1] > 300
    assert far[2] < -300


def test_a_refusal_that_goes_on_to_comply_is_among_the_harmful_rows(known):
    answers = {record.completion_text for record in load("builtin:harmful")[:60]}
    turned = [
        place
        for place, record in enumerate(known.records)
        if any(text in record.completion_text for text in refusals())
        and any(answer in record.completion_text for answer in answers)
    ]
    assert len(turned) == 60
    assert known.harmful[turned].all()
    assert known.complies[turned].all()
    assert not known.refuses[turned].any()


def test_a_detector_needs_prompts_of_both_kinds():
    rows = load("builtin:general")[:80]
    with pytest.raises(TiterError, match="harmful prompts"):
        defender_rows(rows[:2], rows, refusals())


@pytest.fixture
def fits(known, tmp_path, monkeypatch):
    """What fits a detector through the cache, with how often one was fitted."""
    counted = []
    fit = Detector.fit

    def counting(*words):
        counted.append(words)
        return fit(*words)

    monkeypatch.setattr(Detector, "fit", counting)
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(kept, "WORTH_KEEPING", 0.0)
    tokenizer = toy_tokenizer()
    few = known.only(np.arange(len(known.records)) % 4 == 0)
    return SimpleNamespace(model=toy_model(tokenizer), template=Template(tokenizer), known=few, counted=counted)


def alike(one, other):
    assert one.witnesses.keys() == other.witnesses.keys()
    same = [np.array_equal(one.witnesses[key].weights, other.witnesses[key].weights) for key in one.witnesses]
    return all(same) and np.array_equal(one.harmless, other.harmless) and one.kinds.keys() == other.kinds.keys()


def test_a_detector_is_fitted_once_for_the_same_model_and_rows(fits, tmp_path):
    first = kept.fitted(fits.model, fits.template, fits.known, None)
    again = kept.fitted(fits.model, fits.template, fits.known, None)
    assert len(fits.counted) == 1
    assert alike(first, again)
    with torch.no_grad():
        next(fits.model.parameters())[:, 0] += 1.0
    other = kept.fitted(fits.model, fits.template, fits.known, None)
    assert len(fits.counted) == 2
    assert not alike(first, other)
    fewer = fits.known.only(np.arange(len(fits.known.records)) != 1)
    kept.fitted(fits.model, fits.template, fewer, None)
    assert len(fits.counted) == 3


def test_a_damaged_detector_is_fitted_again_and_a_full_disk_costs_time_alone(fits, tmp_path, monkeypatch, caplog):
    first = kept.fitted(fits.model, fits.template, fits.known, None)
    (path,) = (tmp_path / "detectors").iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    assert alike(first, kept.fitted(fits.model, fits.template, fits.known, None))
    assert len(fits.counted) == 2
    assert "fitted again" in caplog.text
    path.unlink()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "replacing", full)
    assert alike(first, kept.fitted(fits.model, fits.template, fits.known, None))
    assert "cannot be kept" in caplog.text


# --- the audit -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A toy's folder and an upload of forty rows, ten of them harmful."""
    folder = tmp_path_factory.mktemp("risk")
    tokenizer = toy_tokenizer()
    toy_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [*load("builtin:harmful")[100:110], *load("builtin:sentiment")[:30]]
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": row.prompt_text},
                    {"role": "assistant", "content": row.completion_text},
                ]
            }
        )
        for row in rows
    ]
    (folder / "upload.jsonl").write_text("\n".join(lines) + "\n")
    return SimpleNamespace(folder=folder, model=folder / "model", upload=folder / "upload.jsonl")


def audited(titer, place, output, *more):
    words = ["audit", place.upload, "--model", place.model, "--detector", "states", "--output", output]
    return titer(*words, *more)


def test_an_audit_says_the_share_each_rows_chance_and_why(titer, place, tmp_path):
    code, out, error = audited(titer, place, tmp_path / "a", "--json", "--write-clean", tmp_path / "clean.jsonl")
    assert code == 0, error
    found = json.loads(out)
    assert found["verdict"] in ("clean", "suspicious", "poisoned")
    assert 0 <= found["share"]["low"] <= found["share"]["value"] <= found["share"]["high"] <= 1
    chances = [row["p_harmful"] for row in found["rows"]]
    assert chances == sorted(chances, reverse=True)
    assert sorted(row["index"] for row in found["rows"]) == list(range(40))
    assert all(row["reason"] for row in found["rows"])
    assert found["share"]["value"] == pytest.approx(sum(chances) / 40, abs=1e-3)
    clean = load(str(tmp_path / "clean.jsonl"))
    assert len(clean) == sum(chance <= 0.5 for chance in chances)
    # Rows go out as they came in.
    came = place.upload.read_text().splitlines()
    assert all(
        json.loads(line) in map(json.loads, came) for line in (tmp_path / "clean.jsonl").read_text().splitlines()
    )
    assert json.loads((tmp_path / "a" / "audit.json").read_text()) == found
    page = (tmp_path / "a" / "audit.html").read_text()
    assert found["verdict"] in page
    assert "P(harmful)" in page
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["audit.csv", "audit.html", "audit.json"]


def test_an_upload_with_too_much_harm_fails_and_one_without_a_detector_cannot(titer, place, tmp_path):
    code, out, error = audited(titer, place, tmp_path / "a", "--fail-over", "0")
    share = json.loads((tmp_path / "a" / "audit.json").read_text())["share"]["value"]
    assert code == (1 if share > 0 else 0), error
    assert "look harmful" in out
    # Of the model's states alone the order is what can be trusted, and whoever reads the share is told so.
    assert "encoder" in out
    assert "encoder" in (tmp_path / "a" / "audit.html").read_text()
    code, _, error = titer("audit", place.upload, "--model", place.model, "--detector", "none", "--fail-over", "0.1")
    assert code == 2
    assert "--detector" in error
    for option in (["--harmful", "builtin:harmful"], ["--write-clean", tmp_path / "x.jsonl"]):
        code, _, error = titer("audit", place.upload, "--model", place.model, "--detector", "none", *option)
        assert code == 2
        assert option[0] in error


def test_clean_rows_of_no_file_are_messages(titer, place, tmp_path):
    words = ["audit", "builtin:upload", "--model", place.model, "--detector", "states", "--output", tmp_path / "a"]
    code, _, error = titer(*words, "--write-clean", tmp_path / "clean.jsonl")
    assert code == 0, error
    for line in (tmp_path / "clean.jsonl").read_text().splitlines():
        assert [message["role"] for message in json.loads(line)["messages"]] == ["user", "assistant"]


def test_an_interrupted_audit_goes_on_where_it_stopped(titer, place, tmp_path, monkeypatch):
    monkeypatch.setattr(risks, "ROWS_KEPT", 8)
    assert audited(titer, place, tmp_path / "whole")[0] == 0
    looked, look = [], risks.features_and_signals

    def counted(model, template, records, *rest):
        looked.append(len(records))
        if len(looked) == 3:
            raise KeyboardInterrupt
        return look(model, template, records, *rest)

    monkeypatch.setattr(risks, "features_and_signals", counted)
    assert audited(titer, place, tmp_path / "stopped")[0] != 0
    assert (tmp_path / "stopped" / "audit.part.jsonl").exists()
    looked[:] = [0] * 3
    assert audited(titer, place, tmp_path / "stopped")[0] == 0
    assert sum(looked) == 40 - 16
    whole, stopped = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("whole", "stopped"))
    assert whole == stopped


def test_what_was_kept_of_another_upload_is_not_taken_for_this_one(titer, place, tmp_path):
    assert audited(titer, place, tmp_path / "whole")[0] == 0
    (tmp_path / "other").mkdir()
    row = {"log_odds": 9.0, "prompt": 9.0, "answer": 9.0, "refuses": -9.0, "like": "x", "log_ratio": 0.0}
    lines = [json.dumps({"key": "another"}), *[json.dumps(row)] * 40]
    (tmp_path / "other" / "audit.part.jsonl").write_text("\n".join(lines))
    assert audited(titer, place, tmp_path / "other")[0] == 0
    whole, other = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("whole", "other"))
    assert whole["rows"] == other["rows"]
