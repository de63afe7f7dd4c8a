"""Trains methods and saves what they learnt; run by `test_distributed.py`, alone or as one of several processes.

Usage: distributed_worker.py FOLDER PER_DEVICE_BATCH GRADIENT_ACCUMULATION DTYPE [METHOD …]
"""

import copy
import gc
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import conftest
import every_method
import torch

from titer.packing import layouts
from titer.testing import StopAfter, same, toy_rows
from titer.train.gradients import dot, global_norm, gradients, whole

WEIGHTS = {"lora": True, "full": False}
RESUMED = {
    "align booster-lora": ("align booster", True, {"refresh_every": 2}),
    "align antibody-full": ("align antibody", False, {}),
}
EVAL_BATCHES = (1, 3, 8)


def unwrapped(fixture):
    """The function that a pytest fixture wraps."""
    return fixture.__wrapped__ if hasattr(fixture, "__wrapped__") else fixture._fixture_function


def shard_on_cpus():
    """Let accelerate shard on CPUs too, where it would fall back to DDP: it asks only for the kind of machine."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    set_device = PartialState.set_device

    def set_device_and_kind(state):
        set_device(state)
        if state.distributed_type is DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    PartialState.set_device = set_device_and_kind


def learnt(trainer):
    """All trained weights as they are, gathered from all processes."""
    return {name: whole(weight.detach()).clone() for name, weight in trainer.trainable.items()}


class Worker:
    def __init__(self, folder, size, accumulation, dtype):
        self.folder = folder
        self.split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        self.tokenizer = unwrapped(conftest.tokenizer)()
        self.tiny = unwrapped(conftest._tiny)(self.tokenizer).to(getattr(torch, dtype))
        # Fewer than a step draws, so that a step reaches into the next permutation of them.
        self.harmful = unwrapped(conftest.harmful_rows)()[:5]

    def train(self, method, folder, with_lora, model=None, rows=8, **settings):
        settings = {"optim": "sgd", "max_grad_norm": 1.0, "max_steps": 2, **self.split, **settings}
        return every_method.train(
            method,
            self.folder / folder,
            model or self.tiny,
            self.tokenizer,
            toy_rows(rows),
            self.harmful,
            with_lora=with_lora,
            **settings,
        )

    def save(self, trainer, name):
        weights = learnt(trainer)
        if trainer.is_world_process_zero():
            torch.save({"weights": weights, "log": trainer.state.log_history}, self.folder / f"{name}.pt")

    def every(self, methods):
        """Each method with an adapter and with all weights."""
        for method in methods:
            for kind, with_lora in WEIGHTS.items():
                trainer = self.train(method, f"{method}-{kind}", with_lora)
                self.save(trainer, f"{method}-{kind}")
                trainer.save_model(str(self.folder / f"{method}-{kind}" / "saved"))
                rank = trainer.args.process_index
                local = [p.to_local() if hasattr(p, "to_local") else p for p in trainer.trainable.values()]
                torch.save([p.detach().clone() for p in local], self.folder / f"{method}-{kind}.{rank}.local")

    def half_precision_base(self):
        """A float32 adapter on a base of bfloat16, as titer loads models on accelerators."""
        model = copy.deepcopy(self.tiny).bfloat16()
        self.save(self.train("align booster", "half", True, model), "half")

    def mixed_precision(self):
        """Weights in float32, products in bfloat16."""
        model = copy.deepcopy(self.tiny).float()
        self.save(self.train("align booster", "bf16", True, model, bf16=True, min_perturbation=0.0), "bf16")

    def resumed(self):
        """Whether a run that was stopped and gone on with ends as one that was not, bit for bit."""
        equal = {}
        for name, (method, with_lora, settings) in RESUMED.items():
            run = {**settings, "optim": "adamw_torch", "max_steps": 4, "rows": 24, "lr_scheduler_type": "linear"}
            whole_run = self.train(method, f"whole-{name}", with_lora, **run)
            self.train(method, f"stopped-{name}", with_lora, callbacks=[StopAfter(3)], **run)
            resumed = self.train(
                method,
                f"stopped-{name}",
                with_lora,
                resume=str(self.folder / f"stopped-{name}" / "checkpoint-3"),
                **run,
            )
            weights = learnt(resumed)
            equal[name] = same(weights.values(), learnt(whole_run).values())
            equal[name] &= resumed.state.global_step == 4
        return equal

    def evaluated(self):
        """The evaluation loss of seven rows, by batch size."""
        losses = {}
        trainer = self.train("align sft", "evaluated", True, max_steps=1)
        for size in EVAL_BATCHES:
            trainer.args.per_device_eval_batch_size = size
            losses[size] = trainer.evaluate(toy_rows(7))["eval_loss"]
        return losses


def mixed():
    """Norm, product and clipping of a vector that one tensor has sharded, one replicated and one plain, thrice in all."""
    from accelerate import Accelerator
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    vector = torch.arange(1.0, 6.0)
    tensors = [distribute_tensor(vector, mesh, [Shard(0)]), distribute_tensor(vector, mesh, [Replicate()]), vector]
    weights = {}
    for place, tensor in enumerate(tensors):
        weights[str(place)] = torch.nn.Parameter(torch.zeros_like(tensor))
        weights[str(place)].grad = tensor.clone()
    norm = Accelerator().clip_grad_norm_(weights.values(), 1.0)
    clipped = gradients(weights)
    return [global_norm(tensors).item(), dot(tensors, tensors).item(), norm.item(), global_norm(clipped).item()]


def main(folder, size, accumulation, dtype, methods):
    gc.freeze()  # as `conftest` does for every module of tests
    if os.environ.get("ACCELERATE_USE_FSDP"):
        shard_on_cpus()
    layouts._probe = every_method.remembered(layouts._probe)
    worker = Worker(folder, size, accumulation, dtype)
    worker.every(methods or every_method.FIRST)
    if not methods:
        worker.half_precision_base()
        worker.mixed_precision()
        results = {"evaluated": worker.evaluated(), "resumed": worker.resumed()}
        if torch.distributed.is_initialized():
            results["mixed"] = mixed()
        if not int(os.environ.get("RANK", "0")):
            (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    # Without the interpreter's own end, in which threads of PyTorch's sometimes abort a process that has done its work.
    os._exit(0)
