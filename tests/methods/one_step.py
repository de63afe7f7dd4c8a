"""Optimizer steps of plain SGD on the toy, and the model that their gradients are written out on longhand."""

import copy

from transformers import TrainerCallback

from titer.testing import Trial, weights
from titer.testing.toy import toy

RATE = 0.1


class Course(TrainerCallback):
    """Keeps the weights before the first step and after each."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights(model))


def sgd(method, folder, **how):
    """Train all weights of the toy with plain SGD; returns the trainer and the direction that each step went."""
    course = Course()
    plain = {"optim": "sgd", "weight_decay": 0.0, "learning_rate": RATE, "with_lora": False}
    trainer = Trial(method, {}, folder).train(callbacks=[course], **{**plain, **how})
    course.directions = [
        [(before - after) / RATE for before, after in zip(*pair, strict=True)]
        for pair in zip(course.weights, course.weights[1:])
    ]
    return trainer, course


def reference(values=None):
    """The toy with the library's own attention, and with these trained weights."""
    model = copy.deepcopy(toy()[0])
    model.set_attn_implementation("sdpa")
    if values is not None:
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.data.copy_(value)
    return model
