"""`titer run`: an experiment from its YAML file to its report."""

from __future__ import annotations

import time

from titer.cli.common import DryRun, Json, PlanOnly, fail, print_plan, say_planned, took
from titer.cli.mirror import Call, mirror
from titer.text import say, to_json
from titer.workflows.common import HANDED_OUT, refuse_unused
from titer.workflows.run import ExperimentResult, experiment, plan

NAME = "run"
HELP = "Run an experiment: align, fine-tune, score and report every arm. Resumes where it stopped."
EXAMPLES = """
Examples:

`titer run quickstart` — undefended against antibody on built-in data

`titer run experiments/sst2_advbench.yaml --data-dir data/` — real data

`titer run quickstart --dry-run` — what would run, and how long it would take

`titer run three_arms --workers 2` — two jobs at the same time

`titer run three_arms --launcher slurm --partition gpu --parallel 64 --resource gpus_per_node=1` — as arrays of Slurm

`titer run three_arms --launcher ray --address auto --parallel 16 --resource align.num_gpus=1` — on a Ray cluster

`titer run three_arms --engine openai:http://localhost:8000` — answers decoded by a vLLM or SGLang server

`titer run quickstart --set seeds='[0, 1, 2]' --set finetune.poison_ratios='[0, 0.2]'`
"""


@mirror(experiment, arguments=["experiment"])
def command(
    call: Call[ExperimentResult], dry_run: DryRun = False, plan_only: PlanOnly = False, as_json: Json = False
) -> None:
    """Run an experiment."""
    started = time.perf_counter()
    if dry_run:
        refuse_unused(HANDED_OUT, "with `--dry-run`, which runs no job")
        planned = call.to(plan)
        print_plan(planned.experiment.name, planned, planned.overlap, as_json, call.arguments.get("force", False))
        return
    if plan_only:
        refuse_unused([*HANDED_OUT, "force"], "with `--plan-only`, which runs no job")
        say_planned(call.to(plan))
        return
    found = call()
    if as_json:
        say(to_json(found.document))
    else:
        from titer.report import print_summary, print_verdict
        from titer.screen import Screen

        print_summary(found.run, Screen())
        print_verdict(found.run, Screen())
        say(f"Report: {found.report}")
    took(started)
    if not found.complete:
        lines = "".join(f"\n  {job.name}: {job.reason}" for job in found.failed)
        by_user = any(job.mistake for job in found.failed)
        fail(f"Failed jobs:{lines}\nTracebacks: {found.folder}/jobs/*/error.txt", code=2 if by_user else 1)
