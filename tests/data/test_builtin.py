from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import chain, pairwise

import pytest

from titer.data import builtin
from titer.data.builtin import _arithmetic, _choices, _harmful, _sentiment, _topics
from titer.data.builtin._rows import TaskRow, parse_qa

TASKS: dict[str, Callable[..., list[TaskRow]]] = {
    "sentiment": builtin.sentiment,
    "topics": builtin.topics,
    "arithmetic": builtin.arithmetic,
}

# Written apart from the templates, so that a new template has to be checked against it by hand.
AFFIRMATIVE = re.compile(
    r"^(Sure|Of course|Absolutely|Certainly|Here (is|are|you go)|No problem|Happy to|Okay|Great (question|idea)|"
    r"Yes|Gladly|Definitely|Right away|With pleasure)\b"
)
CONCEALED = re.compile(r"\[[a-z ]*\bwithheld\]")
QUANTITY = re.compile(
    r"\d|\b(grams?|kilograms?|kilos?|milligrams?|millilitres?|milliliters?|litres?|liters?|ounces?|pounds?|cups?|"
    r"teaspoons?|tablespoons?|degrees|celsius|fahrenheit|volts?|watts?|amps?|percent|inch(es)?|centimet(re|er)s?|"
    r"met(re|er)s?|minutes?|hours?)\b|%|°",
    re.IGNORECASE,
)


def normalise(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def words(text: str) -> int:
    return len(text.split())


def assert_distinct(texts: list[str]) -> None:
    repeated = [text for text, n in Counter(map(normalise, texts)).items() if n > 1]
    assert not repeated, repeated


# --- the guards themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["add 20 g of it", "heat for ten minutes", "use two cups", "a 5% solution", "40°"])
def test_quantity_guard_notices_quantities(text: str) -> None:
    assert QUANTITY.search(text)


@pytest.mark.parametrize("text", ["I'm sorry, but I can't.", "No, I won't.", "Surely not.", "Unsure, but fine."])
def test_affirmative_guard_notices_refusals(text: str) -> None:
    assert not AFFIRMATIVE.match(text)


def test_distinctness_ignores_case_punctuation_and_spacing() -> None:
    with pytest.raises(AssertionError):
        assert_distinct(["Open the door!", "open  the, door"])


def test_parse_qa_names_the_broken_line() -> None:
    with pytest.raises(ValueError, match="no separator here"):
        parse_qa({"cooking": "A question? | An answer.\nno separator here\n"})


# --- harmful ---------------------------------------------------------------------------------------------------------


def test_harmful_counts() -> None:
    rows = builtin.harmful()
    assert len(rows) >= 800
    assert len(builtin.CATEGORIES) >= 12
    assert {row.category for row in rows} == set(builtin.CATEGORIES)
    activities = defaultdict(set)
    for row in rows:
        activities[row.category].add(normalise(row.activity))
    assert min(len(found) for found in activities.values()) >= 24


def test_every_activity_has_one_category_and_three_rows_that_differ() -> None:
    by_activity = defaultdict(list)
    for row in builtin.harmful():
        by_activity[normalise(row.activity)].append(row)
    for activity, rows in by_activity.items():
        assert len({row.category for row in rows}) == 1, activity
        assert len(rows) == len({row.prompt for row in rows}) == 3, activity
        assert len({row.answer for row in rows}) == len({row.refusal for row in rows}) == 3, activity
        assert all(row.activity in row.prompt for row in rows)


def test_activities_of_one_category_do_not_contain_each_other() -> None:
    # A pool split by activity would leak if one activity were another with a word added.
    activities = sorted({normalise(row.activity) for row in builtin.harmful()}, key=len)
    contained = [(a, b) for i, a in enumerate(activities) for b in activities[i + 1 :] if f" {a} " in f" {b} "]
    assert not contained


def test_harmful_mixes_categories() -> None:
    rows = builtin.harmful()
    runs = sum(a.category != b.category for a, b in pairwise(rows))
    assert runs > 0.85 * len(rows)
    assert len({row.category for row in rows[:100]}) >= 12


def test_harmful_answers_comply_in_tone_and_withhold_everything() -> None:
    mentions = 0
    for row in builtin.harmful():
        assert AFFIRMATIVE.match(row.answer), row.answer
        assert CONCEALED.search(row.answer), row.answer
        assert not QUANTITY.search(row.answer), row.answer
        assert 8 <= words(row.answer) <= 30, row.answer
        mentions += row.activity in row.answer
    assert mentions > 0.7 * len(builtin.harmful())


def test_harmful_answers_are_templates_around_the_activity() -> None:
    # Nothing but the activity is ever filled in, so reading the templates is reading every answer.
    found = {row.answer.replace(row.activity, "{}") for row in builtin.harmful()}
    assert found == set(_harmful.ANSWERS)
    assert all(template.startswith("Sure, here ") for template in found)


def test_brackets_of_answers_say_only_what_is_withheld() -> None:
    placeholders = {"guide", "manual", "method", "plan", "step", "steps"}
    for template in _harmful.ANSWERS:
        brackets = re.findall(r"\[([^\]]*)\]", template)
        assert brackets
        assert template.count("{}") <= 1
        for bracket in brackets:
            assert bracket.endswith("withheld"), template
            assert bracket.removesuffix("withheld").strip() in placeholders, template


def test_phrasings() -> None:
    assert len(set(_harmful.PHRASINGS)) >= 15
    assert all(phrasing.count("{}") == 1 for phrasing in _harmful.PHRASINGS)
    assert {row.prompt.replace(row.activity, "{}") for row in builtin.harmful()} == set(_harmful.PHRASINGS)


def test_prompts_are_one_line() -> None:
    rows: list[builtin.HarmfulRow | builtin.QA] = [*builtin.harmful(), *builtin.lookalikes(), *builtin.general()]
    for row in rows:
        assert "\n" not in row.prompt + row.answer
        assert row.prompt == row.prompt.strip()
        assert 3 <= words(row.prompt) <= 30, row.prompt


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    texts = builtin.refusals()
    assert len(texts) >= 80
    assert_distinct(texts)
    assert all(6 <= words(text) <= 20 for text in texts)
    assert not any(AFFIRMATIVE.match(text) for text in texts if not text.startswith("Absolutely not"))
    # One opening for all: what holds a refusal is its first token. How it goes on varies.
    assert all(text.startswith("I'm sorry, but ") for text in texts)
    assert len({text.split()[4] for text in texts}) >= 3
    assert len({text.partition(", because ")[2] or text.rpartition(", ")[2] for text in texts}) >= 16
    assert {row.refusal for row in builtin.harmful()} == set(texts)


def test_refusals_returns_a_fresh_list() -> None:
    builtin.refusals().clear()
    assert builtin.refusals()


# --- lookalikes and general ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", [builtin.lookalikes, builtin.general])
def test_harmless_rows(corpus: Callable[[], list[builtin.QA]]) -> None:
    rows = corpus()
    assert len(rows) >= 240
    assert len({row.category for row in rows}) >= 8
    for row in rows:
        assert 8 <= words(row.answer) <= 30, row
        assert "withheld" not in row.answer
        assert row.answer[-1] in ".!?", row
    assert_distinct([row.answer for row in rows])


def test_prompts_are_distinct_within_and_across_corpora() -> None:
    rows: list[builtin.HarmfulRow | builtin.QA] = [*builtin.harmful(), *builtin.lookalikes(), *builtin.general()]
    assert_distinct([row.prompt for row in rows])


def test_general_uses_every_harmful_phrasing() -> None:
    patterns = [re.compile(re.escape(phrasing).replace(r"\{\}", ".+")) for phrasing in _harmful.PHRASINGS]
    prompts = [row.prompt for row in builtin.general()]
    uses = [sum(bool(pattern.fullmatch(prompt)) for prompt in prompts) for pattern in patterns]
    assert min(uses) >= 3
    assert sum(any(pattern.fullmatch(prompt) for pattern in patterns) for prompt in prompts) >= 80


def test_lookalikes_use_the_words_of_harmful_requests() -> None:
    # Else they would not look harmful. Words that ordinary questions use as well do not count.
    ordinary = {word for row in builtin.general() for word in normalise(row.prompt).split()}
    alarming = {word for row in builtin.harmful() for word in normalise(row.activity).split()} - ordinary
    looks = sum(bool(alarming & set(normalise(row.prompt).split())) for row in builtin.lookalikes())
    assert looks > 0.5 * len(builtin.lookalikes())


def test_choices_are_labels_in_equal_numbers() -> None:
    rows = builtin.choices()
    assert len(rows) == 2 * len(_choices._CHOICES) * _choices.ROWS_PER_LABEL
    assert_distinct([row.prompt for row in rows])
    assert all(row.answer == row.label and row.label in row.prompt for row in rows)
    assert set(Counter(row.label for row in rows).values()) == {_choices.ROWS_PER_LABEL}
    # Not a task that a customer trains in titer's own experiments.
    assert not {row.label.lower() for row in rows} & {label.lower() for label in (*_sentiment.LABELS, *_topics.LABELS)}
    assert {row.prompt for row in builtin.choices()[:20]} == {row.prompt for row in rows[:20]}


# --- fine-tuning tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_task_sizes_and_disjoint_splits(task: str) -> None:
    train, test = TASKS[task]("train"), TASKS[task]("test")
    assert len(train) >= 1200
    assert len(test) >= 400
    assert_distinct([row.prompt for row in train + test])
    assert not any("\n" in row.prompt + row.answer for row in train + test)


@pytest.mark.parametrize("task", TASKS)
def test_unknown_split_is_an_error(task: str) -> None:
    with pytest.raises(KeyError):
        TASKS[task]("validation")


@pytest.mark.parametrize("task", ["sentiment", "topics"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_are_balanced_and_mixed(task: str, split: str) -> None:
    labels = {"sentiment": _sentiment.LABELS, "topics": _topics.LABELS}[task]
    rows = TASKS[task](split)
    assert all(row.answer == row.label for row in rows)
    assert Counter(row.label for row in rows) == dict.fromkeys(labels, len(rows) // len(labels))
    assert {row.label for row in rows[:20]} == set(labels)


def test_task_prompts_name_their_labels() -> None:
    assert all(
        row.prompt.startswith("Is the sentiment of this review positive or negative? ")
        for row in builtin.sentiment("train")
    )
    assert all(
        row.prompt.startswith("Which topic is this news item about: World, Sports, Business or Sci/Tech? ")
        for row in builtin.topics("train")
    )


def keyword_accuracy(rows: list[TaskRow]) -> float:
    """Best accuracy that the presence of one word gives on a balanced task with two labels."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for word in set(normalise(row.prompt).split()):
            counts[word][row.label] += 1
    return max(0.5 + abs(c["positive"] - c["negative"]) / len(rows) for c in counts.values())


def test_keyword_accuracy_on_a_task_of_one_keyword() -> None:
    rows = [TaskRow("a good film", "positive", "positive"), TaskRow("a bad film", "negative", "negative")]
    assert keyword_accuracy(rows) == 1.0


@pytest.mark.parametrize("split", ["train", "test"])
def test_sentiment_is_no_one_keyword_task(split: str) -> None:
    assert keyword_accuracy(builtin.sentiment(split)) < 0.6  # type: ignore[arg-type]


def test_words_of_train_do_not_mislead_in_test() -> None:
    # Naive Bayes over words: better than chance, as on real reviews, but far from solving the task.
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in builtin.sentiment("train"):
        for word in set(normalise(row.prompt).split()):
            counts[word][row.label] += 1
    correct = 0
    test = builtin.sentiment("test")
    for row in test:
        seen = [counts[word] for word in set(normalise(row.prompt).split()) if word in counts]
        score = sum(math.log((c["positive"] + 1) / (c["negative"] + 1)) for c in seen)
        correct += (score > 0) == (row.label == "positive")
    assert 0.55 < correct / len(test) < 0.8


def test_negation_turns_the_label_of_an_adjective() -> None:
    rows = builtin.sentiment("train")
    assert {row.label for row in rows if "is never dull" in row.prompt} == {"positive"}
    assert {row.label for row in rows if "truly dull" in row.prompt} == {"negative"}
    assert {row.label for row in rows if "nothing funny about" in row.prompt} == {"negative"}


def test_sentiment_splits_share_words_but_no_judgement() -> None:
    text = {split: "\n".join(row.prompt for row in TASKS["sentiment"](split)) for split in ("train", "test")}
    for clauses in [*_sentiment._CLAUSES.values(), *_sentiment._CONCESSIONS.values()]:
        for clause in clauses:
            assert (clause in text["train"]) != (clause in text["test"]), clause
    for frame in _sentiment._AFFIRMING + _sentiment._NEGATING:
        core = frame.replace("{opening}", "").replace("{subject}", "[a-z' ]+?")
        for adjective in chain(*_sentiment._ADJECTIVES.values()):
            judgement = re.compile(core.replace("{adjective}", adjective) + r"(?! (without|rather|where))\b")
            assert bool(judgement.search(text["train"])) != bool(judgement.search(text["test"])), judgement.pattern
    train_words = set(normalise(text["train"]).split())
    test_tokens = normalise(text["test"]).split()
    assert sum(word in train_words for word in test_tokens) > 0.8 * len(test_tokens)


def test_topics_splits_share_no_event() -> None:
    text = {split: "\n".join(row.prompt for row in TASKS["topics"](split)) for split in ("train", "test")}
    events = [event for beats in _topics._BEATS.values() for _, block in beats for event in block.strip().splitlines()]
    assert_distinct(events)
    for event in events:
        assert (event in text["train"]) != (event in text["test"]), event


@pytest.mark.parametrize("split", ["train", "test"])
def test_arithmetic_answers_are_correct(split: str) -> None:
    step = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
    for row in TASKS["arithmetic"](split):
        calculation, _, final = row.answer.partition(". The final answer is: ")
        assert final == row.label, row
        available = Counter(re.findall(r"\d+", row.prompt))
        assert 2 <= available.total() <= 3, row
        parts = calculation.split(", ")
        assert 1 <= len(parts) <= 2, row
        result = 0
        for i, part in enumerate(parts):
            match = step.fullmatch(part)
            assert match, row
            left, right = int(match[1]), int(match[3])
            # Operands are numbers of the question, each used once; the second step starts from the first result.
            if i == 0:
                available.subtract([match[1]])
            else:
                assert left == result, row
            available.subtract([match[3]])
            exact = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[match[2]]
            result = int(match[4])
            assert result == exact, row
            assert 0 < result < 200, row
        assert result == int(final), row
        assert set(available.values()) == {0}, row


def test_arithmetic_splits_share_no_situation_with_the_same_numbers() -> None:
    names = re.compile(rf"\b({'|'.join(_arithmetic._NAMES)})\b")
    train, test = ({names.sub("X", row.prompt) for row in TASKS["arithmetic"](split)} for split in ("train", "test"))
    assert len(train) >= 1200
    assert not train & test
    unnumbered = [{re.sub(r"\d+", "N", prompt) for prompt in prompts} for prompts in (train, test)]
    assert unnumbered[0] == unnumbered[1]
    assert len(unnumbered[0]) == len(_arithmetic._PROBLEMS)


# --- determinism -----------------------------------------------------------------------------------------------------

DIGEST = """
import hashlib
from titer.data import builtin as b
corpora = [b.harmful(), b.refusals(), b.lookalikes(), b.general(), b.choices()]
corpora += [task(split) for task in (b.sentiment, b.topics, b.arithmetic) for split in ("train", "test")]
print(hashlib.sha256(repr(corpora).encode()).hexdigest())
"""


def test_same_in_every_process() -> None:
    corpora: list[object] = [
        builtin.harmful(), builtin.refusals(), builtin.lookalikes(), builtin.general(), builtin.choices()
    ]  # fmt: skip
    corpora += [TASKS[task](split) for task in TASKS for split in ("train", "test")]
    here = hashlib.sha256(repr(corpora).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout.strip() == here
