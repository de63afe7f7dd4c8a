"""Trainers: an encoder, the training loop with its hooks, gradients beside the training's own."""
