"""Jobs that judge answers, from file to file. Nothing here generates, so judging again is free of that."""

from __future__ import annotations

from titer import judges
from titer.jobs.job import Job, Kind
from titer.results.artefacts import read_inferences
from titer.results.scoring import check_verdicts, judge_into


def _judge(job: Job) -> None:
    inferences = read_inferences(job.needs[0].folder / "inferences.jsonl")
    own = [judges.get(name) for name in job.places["judges"]]
    check_verdicts(judge_into(job.folder / "scores.jsonl", inferences, own))


JUDGE = Kind("judge", "titer.jobs.verdicts:JUDGE", _judge)
