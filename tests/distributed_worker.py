"""Trains some methods and saves what they learnt; run by `test_distributed.py`, alone or as one of two processes.

Usage: distributed_worker.py FOLDER PER_DEVICE_BATCH GRADIENT_ACCUMULATION
"""

import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import conftest
import every_method
import torch
from training import weights

METHODS = ["sft", "booster", "antibody-align", "antibody-sum", "antibody-mean", "gate"]


def unwrapped(fixture):
    """The function that a pytest fixture wraps."""
    return fixture.__wrapped__ if hasattr(fixture, "__wrapped__") else fixture._fixture_function


def main(folder: Path, size: int, accumulation: int) -> None:
    gc.freeze()  # as `conftest` does for every module of tests
    tokenizer = unwrapped(conftest.tokenizer)()
    tiny = unwrapped(conftest._tiny)(tokenizer).double()
    harmful = unwrapped(conftest.harmful_rows)()
    for method in METHODS:
        trainer = every_method.train(
            method,
            folder / method,
            tiny,
            tokenizer,
            every_method.many_rows(8),
            harmful,
            with_lora=True,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=1.0,
        )
        assert trainer.args.world_size == int(os.environ.get("WORLD_SIZE", "1"))
        rank = trainer.args.process_index
        torch.save(weights(trainer.model), folder / f"{method}.{rank}.pt")
        torch.save(trainer.state.log_history, folder / f"{method}.{rank}.log")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
