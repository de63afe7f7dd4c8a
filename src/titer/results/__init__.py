"""Evaluation: harmful score, refusals and task accuracy with intervals, in three separate artefacts.

```python
from titer import judges
from titer.results import read_inferences, score, summarise, write_results, write_scores

inferences = read_inferences("run/inferences.jsonl")
scores = score(inferences, judges.get("offline"))
write_scores("run/scores.jsonl", scores)
write_results("run/results.json", summarise(inferences, scores), provenance={"command": "titer evaluate"})
```
"""

from __future__ import annotations

from titer.results.artefacts import (
    METRICS,
    PHASES,
    RESULTS_SCHEMA,
    Inference,
    Result,
    ScoreRow,
    read_inferences,
    read_results,
    read_scores,
    write_inferences,
    write_results,
    write_scores,
)
from titer.results.scoring import Answer, check_verdicts, error_rates_of, judge_answers, judge_into, score, summarise
from titer.results.tasks import TASKS, Task, correct, parse
from titer.stats.intervals import (
    Agreement,
    Difference,
    Estimate,
    Interval,
    agreement,
    auroc,
    auroc_interval,
    mean_interval,
    paired_mean,
    wilson,
)

__all__ = [
    "METRICS",
    "PHASES",
    "RESULTS_SCHEMA",
    "TASKS",
    "Agreement",
    "Answer",
    "Difference",
    "Estimate",
    "Inference",
    "Interval",
    "Result",
    "ScoreRow",
    "Task",
    "agreement",
    "auroc",
    "auroc_interval",
    "check_verdicts",
    "correct",
    "error_rates_of",
    "judge_answers",
    "judge_into",
    "mean_interval",
    "paired_mean",
    "parse",
    "read_inferences",
    "read_results",
    "read_scores",
    "score",
    "summarise",
    "wilson",
    "write_inferences",
    "write_results",
    "write_scores",
]
