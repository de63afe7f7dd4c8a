"""Prints the table of docs/benchmarks.md that says how far sharded training is from that of one process.

Usage: PYTHONPATH=src python tests/distributed_table.py
"""

import tempfile
from pathlib import Path

from distributed_worker import WEIGHTS
from every_method import EVERY
from test_distributed import LAUNCH, difference, learnt, start

DTYPES = ["float64", "float32"]


def main(folder):
    for dtype in DTYPES:
        for run in LAUNCH:
            process = start(folder / dtype / run, run, dtype, EVERY)
            output, _ = process.communicate()
            assert process.returncode == 0, output
    others = [run for run in LAUNCH if run != "one"]
    print("| method | weights |", " | ".join(f"{run}, {dtype}" for dtype in DTYPES for run in others), "|")
    print("|---" * (2 + len(DTYPES) * len(others)) + "|")
    for method in EVERY:
        for kind in WEIGHTS:
            cells = []
            for dtype in DTYPES:
                one = learnt(folder / dtype, "one", f"{method}-{kind}")
                cells += [f"{difference(one, learnt(folder / dtype, run, f'{method}-{kind}')):.0e}" for run in others]
            print(f"| {method} | {kind} |", " | ".join(cells), "|")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
