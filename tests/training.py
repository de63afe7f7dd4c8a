"""Runs trainers on the tiny model and catches the gradient that reaches the optimizer."""

import torch
from transformers import TrainerCallback


class CatchGradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append([p.grad.detach().clone() for p in model.parameters() if p.requires_grad])


class StopAfter(TrainerCallback):
    """Saves a checkpoint after a step and ends the run there, as a machine that is taken away."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def config(cls, folder, **settings):
    defaults = {
        "output_dir": str(folder),
        "bf16": False,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_steps": 1,
        "seed": 3,
        "per_device_train_batch_size": 8,
        "weight_decay": 0.1,
        "dataloader_pin_memory": False,
    }
    return cls(**{**defaults, **settings})


def trained(trainer_class, args, model, tokenizer, rows, **streams):
    """Train and return (trainer, gradients of each optimizer step)."""
    catch = CatchGradients()
    trainer = trainer_class(
        model=model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[catch], **streams
    )
    trainer.train()
    return trainer, catch.steps


def weights(model):
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def lora(**settings):
    from peft import LoraConfig

    defaults = {"target_modules": ["q_proj", "k_proj", "v_proj"], "init_lora_weights": False}
    return LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **{**defaults, **settings})


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
