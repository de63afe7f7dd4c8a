"""Planted trajectories: attackers whose harmfulness is known at every step."""

import dataclasses

from titer.assays.trajectories import UNITS, Checkpoint, Left, Trajectory

STEPS = (1, 2, 4, 8, 16)


def trajectory(
    harms,
    attack="harmful",
    seed=0,
    broken=(),
    utility=(),
    accuracy=(),
    harmful=True,
    domain="in",
    error=None,
    n=40,
    steps=STEPS,
):
    """An attacker that sees 10 rows a step; `harms` are parts of harmful answers at step 0 and at `steps`."""
    points = []
    for place, (step, harm) in enumerate(zip((0, *steps), harms)):
        points.append(
            Checkpoint(
                step=step,
                samples=10 * step,
                tokens=400 * step,
                flops=1e9 * step,
                harmful=harm,
                refused=0.0 if harm is None else 1 - harm,
                broken=broken[place] if broken else 0.0,
                n=n,
                utility=utility[place] if utility else 0.8,
                accuracy=accuracy[place] if accuracy else None,
            )
        )
    return Trajectory(attack, seed, domain, 1.0 if harmful else 0.0, harmful, tuple(points), error)


# Found broken at step 2, 4, 8 or 16, or never.
SAFE = (0.0, 0.0, 0.0, 0.0, 0.0, 0.05)
AT_2 = (0.0, 0.05, 0.5, 0.9, 1.0, 1.0)
AT_4 = (0.0, 0.0, 0.05, 0.5, 0.9, 1.0)
AT_8 = (0.0, 0.0, 0.05, 0.1, 0.4, 0.6)
AT_16 = (0.0, 0.0, 0.0, 0.05, 0.1, 0.4)


def attacks(*harms, **changes):
    """One attacker of each kind, `kind-0`, `kind-1`, and so on."""
    return [trajectory(harm, f"kind-{place}", **changes) for place, harm in enumerate(harms)]


def ended_early(whole, phi=0.1):
    """A trajectory as it is when its attacker is ended once it is over; the same where it never is."""
    for place, point in enumerate(whole.checkpoints):
        seen = dataclasses.replace(whole, checkpoints=whole.checkpoints[: place + 1])
        more = [later.n for later in whole.checkpoints[place + 1 :]]
        if point.step and more and (why := seen.over(phi, more)):
            return dataclasses.replace(seen, left=Left(point.step, why, {unit: whole.planned(unit) for unit in UNITS}))
    return whole
