"""STAR-DSS against its loss written out, one sample at a time, and what the guard is asked and how often."""

import copy
import itertools
import json

import guards
import pytest
import references as ref
import torch
from training import config, trained

from titer.errors import TiterError
from titer.methods.finetune.guard import GUARD_LOG
from titer.methods.finetune.star_dss import StarDssConfig, StarDssTrainer, chunk_ends
from titer.testing import same, toy_rows, weights
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer

ROWS = toy_rows(8)
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "max_steps": 2, **SPLIT}


@pytest.fixture(autouse=True)
def _nothing_asked():
    guards.ASKED.clear()


def train(tiny, tokenizer, folder, rows=ROWS, **settings):
    settings = {"guard": "guards:Counting", **SGD, **settings}
    args = config(StarDssConfig, folder, **settings)
    return trained(StarDssTrainer, args, copy.deepcopy(tiny).double(), tokenizer, rows)


def values(tokenizer, row, ids, per="chunk", size=5, unit="tokens", hard=False):
    """V of every token of an answer, token by token."""
    prompt = row["prompt"][0]["content"]

    def text(first):
        return tokenizer.decode(ids[:first], skip_special_tokens=True)

    found = []
    for token in range(1, len(ids) + 1):
        if per == "row":
            end = len(ids)
        elif unit == "tokens":
            end = min(len(ids), -(-token // size) * size)
        else:
            chunk = max(1, -(-len(text(token).split()) // size))
            end = max(t for t in range(1, len(ids) + 1) if max(1, -(-len(text(t).split()) // size)) == chunk)
        value = 1 - guards.harm_of(prompt, text(end))
        found.append(float(value > 0.5) if hard else value)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    "how",
    [
        {"per": "chunk"},
        {"per": "chunk", "chunk": 3},
        {"per": "chunk", "unit": "words", "chunk": 2},
        {"per": "row"},
        {"per": "row", "hard": True},
    ],
    ids=lambda how: " ".join(map(str, how.values())),
)
def test_two_steps_are_those_of_the_formula(tiny, tokenizer, tmp_path, how):
    trainer, gradients = train(tiny, tokenizer, tmp_path, kappa=2.0, **how)
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    start = copy.deepcopy(model)
    pairs = ref.encode(tokenizer, ROWS)
    renamed = {**how, "size": how.get("chunk", 5)}
    renamed.pop("chunk", None)
    shares = [values(tokenizer, row, ids, **renamed) for row, (_, ids) in zip(ROWS, pairs)]
    assert 0.1 < torch.cat(shares).mean() < 0.9, "both parts must matter, or this test proves nothing of one"
    for step in range(2):
        parts, pulls = [], []
        for (prompt, ids), safe in zip(pairs, shares):
            nll = ref.sample_nll(model, prompt, ids)
            with torch.no_grad():
                before = ref.sample_nll(start, prompt, ids)
            pulls.append((1 - safe) * 2.0 * 0.5 * ((-nll) - (-before)) ** 2)
            parts.append(safe * nll + pulls[-1])
        tokens = sum(len(part) for part in parts)
        expected = ref.gradient(model, torch.cat(parts).sum() / tokens)
        assert ref.relative_error(gradients[step], expected) < 1e-10
        with torch.no_grad():
            for weight, slope in zip([p for p in model.parameters() if p.requires_grad], expected):
                weight -= 0.1 * slope
    pulled = ref.norm(ref.gradient(model, 0 * ref.mean_nll(model, pairs) + k2(model, start, pairs, shares)))
    assert pulled > 1e-3, "the reference must matter, or this test proves nothing of it"
    assert max((a - b).abs().max().item() for a, b in zip(weights(model), weights(trainer.model))) < 1e-12


def k2(model, start, pairs, shares):
    with torch.no_grad():
        before = [ref.sample_nll(start, *pair) for pair in pairs]
    now = [ref.sample_nll(model, *pair) for pair in pairs]
    return torch.cat([(1 - s) * (a - b) ** 2 for s, a, b in zip(shares, now, before)]).mean()


def test_a_guard_that_trusts_everything_leaves_plain_fine_tuning(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path, guard="guards:Trusting")
    args = config(PackedSFTConfig, tmp_path / "sft", **SGD)
    plain, _ = trained(PackedSFTTrainer, args, copy.deepcopy(tiny).double(), tokenizer, ROWS)
    apart = max((a - b).abs().max().item() for a, b in zip(weights(plain.model), weights(trainer.model)))
    assert apart < 1e-12


def test_nothing_is_learnt_of_what_the_guard_finds_harmful_from_the_start(tiny, tokenizer, tmp_path):
    """k2 has no slope at the reference, and V is 0: the weights stay for good."""
    trainer, _ = train(tiny, tokenizer, tmp_path, guard="guards:Alarmed")
    apart = max((a - b.double()).abs().max().item() for a, b in zip(weights(trainer.model), weights(tiny)))
    assert apart < 1e-12


def test_released_rejection_sampling_drops_rows_and_counts_their_tokens(tiny, tokenizer, tmp_path):
    """κ = 0, one value a row, rounded: Σ over kept rows, over the tokens of all."""
    _, (first, _) = train(tiny, tokenizer, tmp_path, kappa=0.0, per="row", hard=True)
    model = copy.deepcopy(tiny).double()
    model.set_attn_implementation("sdpa")
    pairs = ref.encode(tokenizer, ROWS)
    asked = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in ROWS]
    kept = [pair for pair, words in zip(pairs, asked) if guards.harm_of(*words) < 0.5]
    assert 0 < len(kept) < len(pairs)
    share = sum(len(ids) for _, ids in kept) / sum(len(ids) for _, ids in pairs)
    assert ref.relative_error(first, ref.gradient(model, share * ref.mean_nll(model, kept))) < 1e-10


def test_chunks_end_where_they_should():
    assert chunk_ends(12, 5) == [5, 10, 12]
    assert chunk_ends(10, 5) == [5, 10]
    assert chunk_ends(3, 5) == [3]
    # Words begun after each token: the token that ends in word 3 begins the second chunk of two.
    words = [0, 1, 1, 2, 3, 3, 4, 4]
    assert chunk_ends(8, 2, lambda first: words[first - 1]) == [4, 8]


def test_the_guard_reads_prompt_and_growing_answer_once(tiny, tokenizer, tmp_path):
    train(tiny, tokenizer, tmp_path)
    prompt, [(_, ids)] = ROWS[7]["prompt"][0]["content"], ref.encode(tokenizer, ROWS[7:])
    own = [text for asked, text in guards.ASKED if asked == prompt]
    assert own == [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in chunk_ends(len(ids), 5)]
    assert len(own) > 2
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(own))
    assert own[-1] == ROWS[7]["completion"][0]["content"], "the end of turn is no text"
    assert len(set(guards.ASKED)) == len(guards.ASKED)


def test_a_training_that_is_made_again_does_not_ask_again(tiny, tokenizer, tmp_path):
    trainer, _ = train(tiny, tokenizer, tmp_path)
    first = len(guards.ASKED)
    log = tmp_path / GUARD_LOG
    with log.open("a") as file:
        file.write('{"id": "brok')  # as where a machine was taken away
    again, _ = train(tiny, tokenizer, tmp_path)
    assert len(guards.ASKED) == first > 0
    assert same(trainer.safety, again.safety)
    train(tiny, tokenizer, tmp_path, rows=[*ROWS[:7], *toy_rows(9)[8:]])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(guards.ASKED) == len(lines) > first, "rows that were not there before are judged"
    train(tiny, tokenizer, tmp_path, guard="guards:Trusting")
    assert len(guards.ASKED) > len(lines), "verdicts of another guard are not taken for this one's"


def test_a_damaged_log_of_verdicts_is_told(tiny, tokenizer, tmp_path):
    (tmp_path / GUARD_LOG).write_text('{"id": "a"}\n')
    with pytest.raises(TiterError, match=r"guard\.jsonl:1: no verdict"):
        train(tiny, tokenizer, tmp_path)


def test_an_answer_that_the_guard_fails_on_is_never_safe(tiny, tokenizer, tmp_path, caplog):
    with pytest.raises(
        TiterError, match=r"fails on \d+ of \d+ answers of the upload, the first of row 3: nobody answers"
    ):
        train(tiny, tokenizer, tmp_path, guard="guards:Failing")
    assert not any("error" in line for line in (tmp_path / GUARD_LOG).read_text().splitlines()), "it is asked again"
    trainer, _ = train(tiny, tokenizer, tmp_path, guard="guards:Failing", unjudged="harmful", per="row")
    assert [float(safe.unique()) for safe in trainer.safety] == [0.75, 0.75, 0.75, 0.0, 0.0, 0.75, 0.75, 0.75]
    assert "fails on 1 of 8" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value"), [("per", "word"), ("unit", "letters"), ("unjudged", "safe"), ("guard", "offlin")]
)
def test_unknown_words_are_refused(tiny, tokenizer, tmp_path, setting, value):
    with pytest.raises(TiterError, match=value):
        train(tiny, tokenizer, tmp_path, **{setting: value})


def test_tokenised_rows_have_no_text_to_judge(tiny, tokenizer, tmp_path):
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    with pytest.raises(TiterError, match="tokenised already"):
        train(tiny, tokenizer, tmp_path, rows=rows)
