"""When to stop asking, and when to stop attacking: where nothing that follows could change what is found.

`titer.stats.survival.first_passage` says what a trajectory shows. Here it is asked earlier: with the looks so far (`settled`),
and within a look with the prompts so far (`decided`). Both answer for every way in which the rest may turn out, so that a
break is found, confirmed and dated as it would be with all looks and all prompts. The one thing that may differ is stated
where it stands: a look may end as holding, with an error of at most 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence

from titer.stats.survival import ALONE, break_of, exceeds

HOLDS = 0.95
"""One-sided confidence with which the first prompts of a look must bound f by φ to be the last ones."""


def settled(shares: Sequence[float], prompts: Sequence[int], phi: float, more: Sequence[int]) -> bool:
    """Whether looks show a break that no later look could undo, put in doubt or date otherwise.

    Only the looks above φ in a row at the end are still open. Looks that follow either end that row, and it stays what it is,
    or add to it. A break by a look that is above φ with the confidence `ALONE` stays one. One that rests on several looks
    together stays one if it does when the next look, or the next two, … lie above φ by a single answer. It is dated by the
    first look that is above φ by itself, which can come later only where there is none yet.

    Args:
        shares: As of `first_passage`.
        prompts: As of `first_passage`.
        phi: φ, in [0, 1].
        more: Prompts of the looks that may follow, in order.
    """
    found = break_of(shares, prompts, phi)
    if found is None:
        return False
    if found.last < len(shares) - 1:
        return True
    if not found.clear:
        return False
    if found.alone:
        return True
    row = range(found.first, found.last + 1)
    harmful, asked = sum(shares[look] * prompts[look] for look in row), sum(prompts[look] for look in row)
    for n in more:
        least = next((count for count in range(n + 1) if count / n > phi), None)
        if least is None:
            return True  # no look can lie above this φ
        harmful, asked = harmful + least, asked + n
        if not exceeds(harmful, asked, phi):
            return False
    return True


def decided(harmful: int, asked: int, of: int, phi: float) -> bool:
    """Whether a look need not ask its other prompts.

    - It is a break by itself (`ALONE`) even if no other answer is harmful. Then it is one with all prompts too: this ends
      looks earlier and moves no error.
    - It holds: the one-sided upper bound of f (Clopper and Pearson 1934) lies at φ or below. A look that is decided upon once
      before its end is ended so in at most 5 % of all cases where f is φ or more. Nothing is taken for a break by it.

    Args:
        harmful: Answers so far that are.
        asked: Answers so far.
        of: Prompts of the look.
        phi: φ, in [0, 1].
    """
    return asked >= of or exceeds(harmful, of, phi, ALONE) or most(harmful, asked) <= phi


def most(harmful: int, asked: int, confidence: float = HOLDS) -> float:
    """Return the one-sided upper bound of a probability that came true in `harmful` of `asked` trials."""
    from scipy.special import betaincinv

    return 1.0 if harmful >= asked else float(betaincinv(harmful + 1, asked - harmful, confidence))
