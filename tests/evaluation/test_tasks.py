import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import refused

from titer.errors import TiterError
from titer.results.tasks import TASKS, correct, parse


@pytest.mark.parametrize("task", ["sentiment", "sst2"])
@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("positive", "positive"),
        ("Positive.", "positive"),
        (" **NEGATIVE** \n", "negative"),
        ("The sentiment of this review is negative.", "negative"),
        ("Sentiment: positive\n\nReview: what a dull, negative film", "positive"),
        ("negative\nReview: a positive delight\nSentiment: positive", "negative"),
        ("positive or negative", None),
        ("It has positive and negative sides.", None),
        ("not positive", None),
        ("This isn't positive at all.", None),
        ("not positive but negative", "negative"),
        ("positively", None),
        ("I liked it.", None),
        ("I'm sorry, but I can't help with that.", None),
        ("", None),
    ],
)
def test_sentiment(task: str, response: str, answer: str | None) -> None:
    assert parse(task, response) == answer


@pytest.mark.parametrize("task", ["topics", "ag_news"])
@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("World", "World"),
        ("sports", "Sports"),
        ("Sport.", "Sports"),
        ("Category: Business", "Business"),
        ("Sci/Tech", "Sci/Tech"),
        ("sci-tech", "Sci/Tech"),
        ("SciTech", "Sci/Tech"),
        ("Science", "Sci/Tech"),
        ("Science and Technology", "Sci/Tech"),
        ("technology", "Sci/Tech"),
        ("This article is about tech.", "Sci/Tech"),
        ("World Business", None),
        ("Sports\nThe world championship of business schools", "Sports"),
        ("worldwide", None),
        ("", None),
    ],
)
def test_topics(task: str, response: str, answer: str | None) -> None:
    assert parse(task, response) == answer


@pytest.mark.parametrize("task", ["arithmetic", "gsm8k"])
@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The final answer is: 18", "18"),
        ("the final answer is 18.", "18"),
        ("She has 3 + 4 = 7.\nThe final answer is: $1,234.50\nNext question: 5 apples", "1234.5"),
        ("The final answer is: **42**", "42"),
        (r"The final answer is: $\boxed{42}$", "42"),
        ("The final answer is: 3 + 4 = 7", "7"),
        ("The final answer is: -5", "-5"),
        ("The final answer is: −5", "-5"),
        ("The final answer is: -$5", "-5"),
        ("The final answer is: --5", "-5"),
        ("--0", "0"),
        ("The final answer is: 7 apples and 3 pears", "7"),
        ("He sells 2 * 9 = <<2*9=18>>18 eggs.\n#### 18", "18"),
        ("#### 1,000", "1000"),
        ("#### 18.0", "18"),
        ("10-3 leaves 7", "7"),
        ("So 10-3", "3"),
        ("She pays 0.50 dollars", "0.5"),
        ("about .5", "0.5"),
        ("It costs 5 dollars. The final answer is:", "5"),
        ("007", "7"),
        ("-0", "0"),
        ("a dozen", None),
        ("", None),
    ],
)
def test_arithmetic(task: str, response: str, answer: str | None) -> None:
    assert parse(task, response) == answer


@given(st.integers(-(10**9), 10**9))
def test_numbers_read_the_same_in_every_spelling(number: int) -> None:
    spellings = [
        f"{number}",
        f"{number:,}",
        f"{number}.0",
        f"{number}.",
        f"#### {number}",
        f"The final answer is: {number:,}.",
        f"so it is {number}",
    ]
    assert {parse("gsm8k", text) for text in spellings} == {str(number)}


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    for task in TASKS.values():
        answer = task.parse(text)
        assert answer is None or not task.labels or answer in task.labels


def test_correct_reads_the_label_with_the_same_parser() -> None:
    assert correct("gsm8k", "The final answer is: 18.0", "She makes 9 * 2 = 18.\n#### 18")
    assert not correct("gsm8k", "The final answer is: 180", "#### 18")
    assert correct("ag_news", "science", "Sci/Tech")
    assert not correct("sst2", "I'm sorry, but I can't help with that.", "positive")


def test_correct_rejects_a_label_that_is_none() -> None:
    with refused("`1`", "`sst2`"):
        correct("sst2", "positive", "1")


def test_unknown_tasks_are_errors_with_a_suggestion() -> None:
    with pytest.raises(TiterError, match="`sst2`"):
        parse("sst-2", "positive")


def test_tasks_know_their_labels_and_chance() -> None:
    for task in TASKS.values():
        assert task.chance == (100 / len(task.labels) if task.labels else 0)
        assert all(task.parse(label) == label for label in task.labels)
        assert task.judge == f"parse:{task.name}@1"
