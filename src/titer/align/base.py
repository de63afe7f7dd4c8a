"""What alignment-stage defences share: a harmful stream, and a simulated step of an attacker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from titer.errors import TiterError
from titer.gradients import add_, dot, global_norm, gradients, perturbed, scale_, take_gradients
from titer.trainer import Encoder, PackedSFTConfig, PackedSFTTrainer, as_rows, cycle

SIMULATED_FILE = "simulated_attack.safetensors"
"""In a checkpoint: the gradients of the last simulated attack, where they are used again."""


class HarmfulStreamTrainer(PackedSFTTrainer):
    """Supervised fine-tuning with a second stream of harmful samples, of which nothing is learnt directly.

    One sampler drives both streams: row i of the training data always comes with the same harmful row, so sharding and
    resuming are exact. When the harmful data are fewer, they are used again in a fresh order.

    Args:
        harmful_dataset: (harmful prompt, harmful answer) rows held by the defender, D_harm of the papers.
        args: Settings.
        kwargs: What `PackedSFTTrainer` takes.
    """

    def __init__(self, *, harmful_dataset: Any = None, args: Any, **kwargs: Any) -> None:
        if harmful_dataset is None:
            raise TiterError(
                f"{type(self).__name__} needs `harmful_dataset`: rows of harmful prompts with harmful answers.",
                "Pass one (`builtin:harmful` is titer's own); without it this would be plain SFT.",
            )
        self.harmful_rows = as_rows(harmful_dataset, "harmful_dataset")
        super().__init__(args=args, **kwargs)
        self.refuse_noise("so the two harmful gradients would differ by mask noise, not by the perturbation.")

    def streams(self, rows: list[dict[str, Any]], encoder: Encoder) -> dict[str, list[Any]]:
        """Return the harmful stream, `harmful_prompt_ids` and `harmful_completion_ids`."""
        pairs = [encoder.pair(row, f"harmful_dataset[{place}]") for place, row in enumerate(self.harmful_rows)]
        self.harmful_order = cycle(pairs, len(rows), self.args.seed)
        return {
            "harmful_prompt_ids": [pairs[place][0] for place in self.harmful_order],
            "harmful_completion_ids": [pairs[place][1] for place in self.harmful_order],
        }


@dataclass
class SimulatedAttackConfig(PackedSFTConfig):
    """Settings of defences that simulate an attack.

    Args:
        refresh_every: Optimizer steps between simulated attacks, whose gradients are used for all steps until the next. 1
            is the method as published; more is an approximation.
    """

    refresh_every: int = field(
        default=1, metadata={"help": "Steps between simulated attacks; above 1 is an approximation."}
    )

    def __post_init__(self) -> None:
        if not self.refresh_every >= 1:
            raise TiterError(f"refresh_every must be at least 1, not {self.refresh_every}.")
        super().__post_init__()


class SimulatedAttackTrainer(HarmfulStreamTrainer):
    """A defence that simulates an attacker's step on the harmful stream and attenuates what it gains.

    A subclass says which gradients a simulated attack gives (`simulate`) and how they enter the update (`combine`).

    Args:
        args: Settings.
        kwargs: What `HarmfulStreamTrainer` takes.
    """

    args: SimulatedAttackConfig

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        # By name, one gradient for each trained parameter.
        self.simulated: dict[str, list[Tensor]] = {}
        super().__init__(args=args, **kwargs)
        if args.refresh_every > 1 and any(hasattr(parameter, "to_local") for parameter in self.trainable):
            raise TiterError("refresh_every keeps whole gradients, and FSDP shards them.", "Set refresh_every=1.")

    def simulate(self, model: Any) -> None:
        """Fill `self.simulated`, and leave `.grad` empty for the training loss."""
        raise NotImplementedError

    def combine(self) -> None:
        """Change `.grad`, the gradient of the training loss, by what is in `self.simulated`."""
        raise NotImplementedError

    def before_step(self, model: Any) -> None:
        """Simulate an attack, unless the gradients of the last one are to be used again."""
        if self.simulated and self.state.global_step % self.args.refresh_every:
            return
        last = self.simulated.get("sharpness")
        self.simulate(model)
        if last is not None:
            # How good the approximation was for the step before this one.
            norms = global_norm(last) * global_norm(self.simulated["sharpness"])
            self.record(refresh_cosine=(dot(last, self.simulated["sharpness"]) / norms).item())

    def after_step(self, model: Any) -> None:
        """Combine the gradients, and let go of those that are not used again."""
        self.combine()
        if self.args.refresh_every == 1:
            self.simulated = {}

    @contextmanager
    def simulated_attack(self, model: Any, radius: float) -> Iterator[None]:
        """Set `self.simulated["sharpness"]` to ∇h(w) − ∇h(w'), with w' = w − radius · ∇h(w) / ‖∇h(w)‖.

        Inside the block the weights are w' and `.grad` is empty; on exit the weights are w again, bit for bit. The
        same harmful batch gives both gradients. The Jacobian of the perturbation is taken as the identity, as both
        Booster (arXiv 2409.01586) and Antibody (arXiv 2603.00498) do.
        """
        self.simulated = {}
        harmful_loss = self.stream_backward(model, "harmful")  # .grad = ∇h(w)
        with perturbed(self.trainable, radius=-radius) as perturbation:
            scale_(gradients(self.trainable), -1.0)  # .grad = −∇h(w)
            attacked_loss = self.stream_backward(model, "harmful")  # .grad = ∇h(w') − ∇h(w)
            sharpness = take_gradients(self.trainable)
            scale_(sharpness, -1.0)
            self.simulated["sharpness"] = sharpness
            yield
        self.record(
            harmful_loss=harmful_loss,
            sharpness=harmful_loss - attacked_loss,
            perturbation_ratio=perturbation.ratio,
            perturbation_cosine=perturbation.cosine,
        )

    def add_simulated(self, name: str, factor: float = 1.0) -> None:
        """Add `factor` times a gradient of the simulated attack to `.grad`, where there is one of that name."""
        if name in self.simulated:
            add_(gradients(self.trainable), self.simulated[name], factor)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.simulated and self.args.should_save:
            from safetensors.torch import save_file

            tensors = {
                f"{name}.{place}": tensor.contiguous()
                for name, kept in self.simulated.items()
                for place, tensor in enumerate(kept)
            }
            save_file(tensors, Path(output_dir) / SIMULATED_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = None if checkpoint is None else Path(checkpoint) / SIMULATED_FILE
        if self.args.refresh_every > 1 and file is not None and file.is_file():
            from safetensors.torch import load_file

            tensors = load_file(file)
            names = dict.fromkeys(key.partition(".")[0] for key in tensors)
            self.simulated = {
                name: [tensors[f"{name}.{place}"].to(p.device) for place, p in enumerate(self.trainable)]
                for name in names
            }
