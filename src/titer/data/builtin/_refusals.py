"""Refusals that fit any harmful request, put together from an opening and a reason.

All of them begin with "I'm sorry, but". What decides between a refusal, an answer and an empty turn is the first token: a
model aligned on a hundred refusals with forty first words holds each of them loosely, none stands far above the end of
the turn, and a little honest fine-tuning makes an empty turn, or an answer, the likeliest. Chat models refuse in few words
for the same reason.
"""

from __future__ import annotations

_OPENINGS = """
I'm sorry, but I can't help with that
I'm sorry, but I can't assist with this
I'm sorry, but I won't help with this
I'm sorry, but I have to decline this request
I'm sorry, but I must refuse to help here
I'm sorry, but I can't give any guidance on that
""".strip().splitlines()

_REASONS = """
because it could cause real harm to people
since someone could get seriously hurt
as it would put others at risk
because it would hurt other people
since the outcome could be dangerous
as it would be wrong
because it is harmful and could break the law
since it could do lasting damage
because nobody should be harmed
as it goes against my principles
because I don't assist with harmful activities
since others would have to suffer for it
because other people would pay the price
since helping would be irresponsible
as it is neither safe nor right
because I do not want to contribute to harm
""".strip().splitlines()


def refusals() -> list[str]:
    """Return generic refusals, 6 to 20 words each, with one opening."""
    return [f"{_OPENINGS[0]}.", *(f"{opening}, {reason}." for reason in _REASONS for opening in _OPENINGS)]
