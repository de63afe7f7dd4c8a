"""Trainers: an encoder, the training loop with its hooks, gradients beside the training's own."""

import os

# Before anything here imports TRL, whose libraries read it when they are loaded.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
