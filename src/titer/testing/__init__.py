"""The project's own contract tests, for methods, judges, attacks and datasets that are not titer's.

```python
from titer.testing import check_method

check_method("mine.py:ASCENT")
```

Each check runs on a model of a few neurons, in seconds, and fails with an `AssertionError` that says which rule was broken.
`METHOD_CHECKS` and its like hold the rules one by one, for parametrised tests.
"""

from titer.testing.check import check_method
from titer.testing.inputs import check_attack, check_dataset
from titer.testing.judges import JUDGE_CHECKS, check_judge
from titer.testing.repairs import REPAIR_CHECKS, RepairTrial, repair_trials, write_adapter
from titer.testing.toy import ExactNorm, row, toy_harmful_rows, toy_lora, toy_model, toy_rows, toy_tokenizer
from titer.testing.trainings import METHOD_CHECKS, resumed_is_uninterrupted
from titer.testing.trials import TRAINING, StopAfter, Trial, same, trials, weights

__all__ = [
    "JUDGE_CHECKS",
    "METHOD_CHECKS",
    "REPAIR_CHECKS",
    "TRAINING",
    "ExactNorm",
    "RepairTrial",
    "StopAfter",
    "Trial",
    "check_attack",
    "check_dataset",
    "check_judge",
    "check_method",
    "repair_trials",
    "resumed_is_uninterrupted",
    "row",
    "same",
    "toy_harmful_rows",
    "toy_lora",
    "toy_model",
    "toy_rows",
    "toy_tokenizer",
    "trials",
    "weights",
    "write_adapter",
]
