"""Word problems of one or two steps with small whole numbers."""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

from titer.data.builtin._rows import TaskRow

ROWS_PER_PROBLEM = {"train": 58, "test": 20}

_NAMES = (
    "Amara", "Boris", "Chloe", "Daniel", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kavya", "Liam", "Mina",
    "Noah", "Olga", "Pedro", "Quinn", "Rosa", "Samir", "Tara", "Umar", "Vera", "Wendy", "Yusuf",
)  # fmt: skip


class _Problem(NamedTuple):
    """A situation with slots for a name and the numbers a, b and c.

    Attributes:
        text: The question.
        steps: One operation, or two joined by " then "; in the second, r is the result of the first.
    """

    text: str
    steps: str


_PROBLEMS = (
    _Problem("{name} has {a} marbles and finds {b} more. How many marbles does {name} have now?", "a + b"),
    _Problem("A bus carries {a} people and {b} more get on. How many people are on the bus?", "a + b"),
    _Problem("{name} read {a} pages on Friday and {b} on Saturday. How many pages is that together?", "a + b"),
    _Problem("{name} bakes {a} rolls and gives {b} to a neighbour. How many rolls are left?", "a - b"),
    _Problem("There are {a} birds on a wire and {b} fly away. How many birds remain?", "a - b"),
    _Problem("{name} has {a} coins and spends {b} on a ticket. How many coins does {name} keep?", "a - b"),
    _Problem("{name} buys {a} boxes with {b} pencils each. How many pencils are there?", "a * b"),
    _Problem("A garden has {a} rows of {b} tulips. How many tulips grow there?", "a * b"),
    _Problem("{name} walks {a} miles a day for {b} days. How many miles does {name} walk?", "a * b"),
    _Problem("{name} shares {a} cherries equally among {b} children. How many does each child get?", "a / b"),
    _Problem("A baker packs {a} muffins into trays of {b}. How many trays are filled?", "a / b"),
    _Problem("{name} has {a} stamps, buys {b} more and gives away {c}. How many stamps remain?", "a + b then r - c"),
    _Problem("A train has {a} passengers; {b} get off and {c} get on. How many are aboard now?", "a - b then r + c"),
    _Problem("{name} buys {a} bags of {b} apples and eats {c}. How many apples are left?", "a * b then r - c"),
    _Problem("A hall has {a} rows of {b} chairs and {c} extra chairs. How many chairs are there?", "a * b then r + c"),
    _Problem("{name} earns {a} dollars an hour for {b} hours and spends {c}. How much is left?", "a * b then r - c"),
    _Problem("{name} picks {a} plums and {b} pears and puts {c} in each bowl. How many bowls?", "a + b then r / c"),
    _Problem("{name} had {a} cards, lost {b} and split the rest among {c} friends. How many each?", "a - b then r / c"),
    _Problem("{name} cuts {a} cakes into {b} slices each for {c} guests. How many slices each?", "a * b then r / c"),
    _Problem(
        "A shop sells {a} red and {b} blue kites a day. How many kites does it sell in {c} days?", "a + b then r * c"
    ),
    _Problem(
        "{name} splits {a} beads into {b} equal piles and adds {c} to one. How big is that pile?", "a / b then r + c"
    ),
    _Problem("{name} orders {a} pizzas at {b} dollars and a salad for {c}. What is the total?", "a * b then r + c"),
    _Problem("A class of {a} loses {b} pupils and forms groups of {c}. How many groups are there?", "a - b then r / c"),
    _Problem(
        "{name} fills {a} jugs with {b} cups each, then spills {c} cups. How many cups remain?", "a * b then r - c"
    ),
)

Split = Literal["train", "test"]


def _calculate(left: int, operator: str, right: int) -> int | None:
    """Return the result, or None if it is not a whole number above zero."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right if left > right else None
    if operator == "*":
        return left * right
    return left // right if left % right == 0 else None


def _solve(steps: str, numbers: dict[str, int]) -> tuple[str, int] | None:
    """Return the calculation line and the result, or None if the numbers do not suit the problem."""
    known = dict(numbers)
    parts = []
    for step in steps.split(" then "):
        left, operator, right = step.split()
        result = _calculate(known[left], operator, known[right])
        if result is None or result > 144:
            return None
        parts.append(f"{known[left]} {operator} {known[right]} = {result}")
        known["r"] = result
    return ", ".join(parts), known["r"]


class _Solved(NamedTuple):
    numbers: dict[str, int]
    calculation: str
    result: int


def _draw_solved(draw: random.Random, problem: _Problem, count: int) -> list[_Solved]:
    """Draw distinct numbers that suit the problem. Factors and divisors stay at 12 or below."""
    first = problem.steps.partition(" then ")[0]
    a_limit, b_limit = (12, 12) if "*" in first else (72, 9) if "/" in first else (49, 24)
    solved: dict[tuple[int, int, int], _Solved] = {}
    while len(solved) < count:
        a, b = draw.randint(2, a_limit), draw.randint(2, b_limit)
        c = draw.randint(2, 9) if "c" in problem.steps else 0
        numbers = {"a": a, "b": b, "c": c}
        solution = _solve(problem.steps, numbers)
        if solution:
            solved[a, b, c] = _Solved(numbers, *solution)
    return list(solved.values())


def arithmetic(split: Split) -> list[TaskRow]:
    """Return word problems; the answer shows the calculation and ends with ``The final answer is: N``.

    The splits share situations and names, but no situation with the same numbers.

    Args:
        split: Which of the two disjoint splits.

    Returns:
        1,392 rows for train, 480 for test, in a fixed mixed order. The label is N.

    Raises:
        KeyError: If the split is neither.
    """
    wanted = ROWS_PER_PROBLEM[split]
    # Numbers come from a stream of their own that is the same for both splits: train takes the first, test the rest.
    numbers_draw = random.Random("titer.builtin.arithmetic.numbers")
    draw = random.Random(f"titer.builtin.arithmetic.{split}")
    rows = []
    for problem in _PROBLEMS:
        both_splits = _draw_solved(numbers_draw, problem, sum(ROWS_PER_PROBLEM.values()))
        for solved in both_splits[:wanted] if split == "train" else both_splits[-wanted:]:
            prompt = problem.text.format(name=draw.choice(_NAMES), **solved.numbers)
            answer = f"{solved.calculation}. The final answer is: {solved.result}"
            rows.append(TaskRow(prompt, answer, str(solved.result)))
    draw.shuffle(rows)
    return rows
