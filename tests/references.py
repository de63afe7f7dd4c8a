"""Longhand references: one sample at a time, no packing, full logits, plain autograd."""

import torch

from titer.models import Template


def encode(tokenizer, rows, answer=None):
    """(prompt ids, completion ids) of rows; `answer` picks another completion than the row's own."""
    template = Template(tokenizer)
    pairs = []
    for number, row in enumerate(rows):
        completion = row["completion"] if answer is None else [{"role": "assistant", "content": answer(number, row)}]
        pairs.append((template.prompt_ids(row["prompt"]), template.completion_ids(row["prompt"], completion)))
    return pairs


def sample_nll(model, prompt, completion):
    """Token losses of one completion, computed alone."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    logs = torch.log_softmax(logits, -1)
    places = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return -logs[places, torch.tensor(completion)]


def mean_nll(model, pairs):
    """Mean token loss over all completions."""
    return torch.cat([sample_nll(model, *pair) for pair in pairs]).mean()


def gradient(model, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))
    ]


def norm(gradients):
    return torch.sqrt(sum((g**2).sum() for g in gradients))


def inner(left, right):
    return sum((a * b).sum() for a, b in zip(left, right))


def layer_losses(model, rows, twice=False):
    """The loss of every differing answer token at each layer, `(layers + 1, N)`, one sample at a time."""
    found = []
    for prompt, answer, refused in rows:
        ids = torch.tensor([prompt + answer])
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True)
        kept = [place for place, token in enumerate(answer) if place >= len(refused) or token != refused[place]]
        assert 0 < len(kept) < len(answer), "some tokens must differ and others not"
        states = [model.model.norm(each[0]) for each in output.hidden_states[:-1]]
        states += [model.model.norm(output.hidden_states[-1][0])] * twice + [output.hidden_states[-1][0]]
        layers = []
        for each in states:
            logs = torch.log_softmax(model.lm_head(each), -1)[len(prompt) - 1 : len(ids[0]) - 1]
            layers.append(-logs[kept, torch.tensor(answer)[kept]])
        found.append(torch.stack(layers))
    return torch.cat(found, 1)


class moved:
    """The weights minus radius times a direction, put back on exit."""

    def __init__(self, model, direction, radius):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.direction, self.radius = direction, radius

    def __enter__(self):
        self.saved = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, d in zip(self.parameters, self.direction):
                p.copy_(p - self.radius * d)

    def __exit__(self, *_):
        with torch.no_grad():
            for p, s in zip(self.parameters, self.saved):
                p.copy_(s)


def relative_error(ours, reference):
    return (norm([a - b for a, b in zip(ours, reference)]) / norm(reference)).item()
