"""Batched greedy decoding gives what one prompt at a time gives."""

import copy

import pytest
import torch
from every_method import make

from titer.infer.generation import _decodings, generate
from titer.models import Template
from titer.packing.alone import first_apart, same_to_rounding
from titer.packing.attention import use_packed_attention
from titer.progress import Task

TEXTS = [
    "bread",
    "a film that is lovely",
    "what is the capital of France?",
    "salt",
    "how do I pick a lock, please please",
    "x",
    "the guide to water and the guide to bread",
]


@pytest.fixture(params=["packed", "sdpa"])
def model(request, tiny):
    """In float64, so that rounding never decides between two tokens."""
    model = tiny.double().eval()
    if request.param == "packed":
        use_packed_attention(model)
    else:
        model.set_attn_implementation("sdpa")
    return model


@pytest.fixture
def template(tokenizer):
    return Template(tokenizer)


def prompts_of(template, kind):
    chats = [template.prompt_ids([{"role": "user", "content": text}]) for text in TEXTS]
    return {
        "shared prefix": chats,
        "nothing shared": [chat[number + 3 :] for number, chat in enumerate(chats)],
        "identical": [chats[2]] * 4,
        "some identical": [chats[0], chats[1], chats[0], chats[1]],
        "one token": [[5], [6], [5]],
        "one": chats[:1],
        "one begins another": [chats[0][:4], chats[0], chats[0][:6]],
    }[kind]


KINDS = ["shared prefix", "nothing shared", "identical", "some identical", "one token", "one", "one begins another"]


def by_hand(model, template, prompt, limit):
    """Greedy decoding without a cache, one token after the other."""
    ids, new = list(prompt), []
    with torch.no_grad():
        while len(new) < limit:
            token = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
            if token in template.end_of_turn:
                break
            ids.append(token)
            new.append(token)
    return template.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_batched_is_one_at_a_time(model, template, kind):
    prompts = prompts_of(template, kind)
    expected = [by_hand(model, template, prompt, 12) for prompt in prompts]
    assert generate(model, template, prompts, 12) == expected
    assert generate(model, template, prompts, 12, batch_size=1) == expected
    assert generate(model, template, prompts, 12, batch_size=3) == expected
    assert any(expected), "the model says nothing, so nothing is compared"


def test_order_is_kept(model, template):
    prompts = prompts_of(template, "shared prefix")
    answers = generate(model, template, prompts, 10)
    assert len(set(answers)) > 3
    assert generate(model, template, prompts[::-1], 10, batch_size=2) == answers[::-1]


def chatty(model, monkeypatch, script):
    """Let the model say, whatever it is asked, what `script` maps the last prompt token to, then token 50 for ever."""
    calls = []

    class Output:
        pass

    def forward(input_ids, past_key_values=None, attention_mask=None, **kwargs):
        real = type(model).forward(
            model, input_ids=input_ids, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        if attention_mask is not None:
            calls.append(len(input_ids))
            if len(calls) == 1:
                forward.rows = input_ids[:, -1].tolist()
            step = len(calls) - 1
            alive = [row for row in forward.rows if len(script[row]) + 1 > step]
            assert len(alive) == len(input_ids), "finished rows must have left the batch"
            tokens = torch.tensor([(script[row] + [STOP])[step] for row in alive])
            real.logits = torch.nn.functional.one_hot(tokens, 400).double()[:, None]
        return real

    monkeypatch.setattr(model, "forward", forward)
    # Alone, without a mask, the model says what it says, and that would be found out.
    monkeypatch.setattr("titer.infer.generation._Batch._difference", lambda batch, logits: "")
    return calls


STOP = 2


def test_rows_leave_the_batch_as_they_finish(model, template, tokenizer, monkeypatch):
    assert tokenizer.eos_token_id == STOP
    script = {10: [20, 21, 22], 11: [], 12: [23], 13: [24, 25, 26, 27, 28]}
    calls = chatty(model, monkeypatch, script)
    answers = generate(model, template, [[7, 8, last] for last in script], 100)
    assert answers == [tokenizer.decode(tokens).strip() for tokens in script.values()]
    # Early stop: six passes, not a hundred, over ever fewer rows.
    assert calls == [4, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_no_more_than_max_new_tokens(model, template, tokenizer, monkeypatch, limit):
    script = {10: [20, 21, 22, 23, 24], 11: [25]}
    calls = chatty(model, monkeypatch, script)
    answers = generate(model, template, [[7, 10], [7, 11]], limit)
    assert answers == [tokenizer.decode(tokens[:limit]).strip() for tokens in script.values()]
    assert len(calls) <= limit


def test_progress_and_mode(model, template):
    prompts = prompts_of(template, "shared prefix")
    counted = Task("answers", len(prompts))
    done = []
    counted.advance = done.append
    model.train()
    generate(model, template, prompts, 2, batch_size=3, counted=counted)
    assert done == [3, 3, 1]
    assert model.training
    assert generate(model.eval(), template, [], 4) == []
    assert not model.training


def test_a_trained_adapter_answers_alike_before_and_after_merging(
    tiny, tokenizer, helpful_rows, harmful_rows, tmp_path
):
    trainer = make(
        "align sft", tmp_path, tiny.double(), tokenizer, helpful_rows, harmful_rows, with_lora=True, max_steps=5
    )
    trainer.train()
    template = Template(tokenizer)
    prompts = prompts_of(template, "shared prefix")
    answers = generate(trainer.model, template, prompts, 8)
    assert generate(copy.deepcopy(trainer.model).merge_and_unload(), template, prompts, 8) == answers
    assert answers != generate(tiny, template, prompts, 8)


# --- 16 bits ----------------------------------------------------------------------------------------------------------


def test_rounding_to_16_bits_is_told_by_the_row_and_not_by_the_logit():
    torch.manual_seed(0)
    wanted = 8 * torch.randn(4, 5000)
    rounded, other = wanted + 0.15 * torch.randn_like(wanted), wanted + 0.8 * torch.randn_like(wanted)
    assert first_apart(rounded, wanted, torch.bfloat16)  # what is near 0 lies far apart by itself
    assert same_to_rounding(rounded, wanted, torch.bfloat16)
    assert not same_to_rounding(other, wanted, torch.bfloat16)
    assert not same_to_rounding(rounded, wanted, torch.float32)
    assert not same_to_rounding(rounded[:2], wanted, torch.bfloat16)
    diverged = wanted.clone()
    diverged[1, 2], diverged[3, 4] = float("nan"), float("inf")
    assert same_to_rounding(diverged, diverged.clone(), torch.bfloat16)
    assert not same_to_rounding(wanted, diverged, torch.bfloat16)
    nothing = diverged.clone()
    nothing[1, 2] = 0
    assert not same_to_rounding(nothing, diverged, torch.bfloat16)


@pytest.mark.parametrize(("leak", "way"), [(0.0, "shared"), (1e-3, "library")])
def test_what_padding_does_is_seen_under_autocast_too(tiny, template, leak, way):
    """A thousandth of the logits is less than bfloat16 rounds away."""
    model = tiny.float().eval()
    plainly = model.forward

    def forward(*args, **inputs):
        output = plainly(*args, **inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and not mask.all():
            output.logits = output.logits * (1 + leak)
        return output

    model.forward = forward
    with torch.autocast("cpu", torch.bfloat16):
        answers = generate(model, template, prompts_of(template, "shared prefix"), 6)
    assert len(answers) == len(TEXTS)
    assert _decodings[model].way == way
