"""Runs trainers on the tiny model and catches the gradient that reaches the optimizer."""

from transformers import TrainerCallback

from titer.testing import TRAINING


class CatchGradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append([p.grad.detach().clone() for p in model.parameters() if p.requires_grad])


def config(cls, folder, **settings):
    return cls(output_dir=str(folder), **{**TRAINING, **settings})


def trained(trainer_class, args, model, tokenizer, rows, **streams):
    """Train and return (trainer, gradients of each optimizer step)."""
    catch = CatchGradients()
    trainer = trainer_class(
        model=model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[catch], **streams
    )
    trainer.train()
    return trainer, catch.steps
