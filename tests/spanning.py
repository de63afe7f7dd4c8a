"""A method such as users write and titer has none of: it perturbs what lies inside of the model, in a whole step."""

import torch

from titer.errors import TiterError
from titer.methods import Gradients, Method
from titer.packing.losses import token_nll
from titer.train.trainer import PackedSFTConfig, PackedSFTTrainer


class SpanningTrainer(PackedSFTTrainer):
    """Trains on embeddings that are moved along the gradient of the loss by them, by a length of 1 over the whole step."""

    def __init__(self, *, args, **kwargs):
        if args.share_prefix:
            raise TiterError("A perturbation belongs to one sample.", "Set share_prefix=False.")
        super().__init__(args=args, **kwargs)

    def before_step(self, model):
        layer, slopes = self.bare_model.get_input_embeddings(), []
        for batch in self.micro_batches:
            seen = []
            handle = layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.requires_grad_()))
            with self.compute_loss_context_manager():
                nll, _ = token_nll(self.model, batch)
            handle.remove()
            slopes += torch.autograd.grad(nll.sum(), seen)
        length = self.total(sum((slope**2).sum() for slope in slopes)).sqrt()
        move = layer.register_forward_hook(lambda _m, _i, out: out + slopes[self.micro_batch] / length)
        self.during_step.callback(move.remove)


SPANNING = Method(
    PackedSFTConfig,
    SpanningTrainer,
    gradients=lambda args: Gradients(training=1),
    variants={"": {"share_prefix": False}},
)
