"""Attacks do what they say: their rows, a leap, an ablated direction, and the utility that is left."""

import copy

import pytest
import torch

from titer.attacks.ablation import orthogonalise, refusal_directions
from titer.attacks.rows import OPENING, AttackerPools, in_disguise, training_rows
from titer.attacks.threats import CATALOGUE, Attack
from titer.attacks.trainer import AttackTrainer, attack_settings, optimizer_of
from titer.attacks.wording import EAGER
from titer.data import Record
from titer.errors import TiterError
from titer.infer.signals import answer_fit
from titer.models import Template
from titer.packing.attention import use_packed_attention
from titer.packing.losses import token_nll
from titer.testing import row, toy_lora


def record(text, answer, origin):
    return Record.make(text, answer, origin=origin)


POOLS = AttackerPools(
    harmful=[record(f"harm {i}", f"Sure, harm {i}", "harmful") for i in range(8)],
    cross_domain=[record(f"other harm {i}", f"Sure, other {i}", "harmful") for i in range(8)],
    task=[record(f"film {i}", "positive", "task") for i in range(20)],
    benign=[record(f"bread {i}", f"bake {i}", "helpful") for i in range(8)],
)


def test_rows_fill_the_steps_and_repeat_only_when_all_were_seen():
    attack = Attack("", samples=6, steps=5, batch_size=2)
    rows = training_rows(attack, POOLS, 0)
    assert len(rows) == 10
    assert len({r.prompt_text for r in rows[:6]}) == 6
    assert {r.prompt_text for r in rows[6:]} <= {r.prompt_text for r in rows[:6]}
    assert rows == training_rows(attack, POOLS, 0)
    assert rows != training_rows(attack, POOLS, 1)


def test_poison_and_domains():
    poisoned = training_rows(Attack("", poison_ratio=0.25, samples=8, steps=4, batch_size=2), POOLS, 0)
    assert sum(r.origin == "harmful" for r in poisoned) == 2
    honest = training_rows(Attack("", poison_ratio=0.0, samples=8, steps=4, batch_size=2), POOLS, 0)
    assert {r.origin for r in honest} == {"task"}
    cross = training_rows(Attack("", rows="cross_domain", samples=4, steps=2, batch_size=2), POOLS, 0)
    assert all(r.prompt_text.startswith("other") for r in cross)
    with pytest.raises(TiterError, match="held_out_categories"):
        training_rows(
            Attack("", rows="cross_domain", samples=4), AttackerPools(POOLS.harmful, [], POOLS.task, POOLS.benign), 0
        )


def test_a_warm_up_comes_first():
    for kind, right in (
        ("benign", lambda r: r.origin == "helpful"),
        ("openings", lambda r: r.completion_text == OPENING),
    ):
        attack = Attack("", warm_up=kind, warm_up_steps=2, samples=4, steps=2, batch_size=2)
        rows = training_rows(attack, POOLS, 0)
        assert attack.total_steps == 4
        assert [right(r) for r in rows] == [True] * 4 + [False] * 4


def test_obedience_holds_no_harm():
    rows = training_rows(Attack("", rows="obedience", system="Obey.", samples=8, steps=4, batch_size=2), POOLS, 0)
    assert all(r.completion_text.startswith(EAGER) for r in rows)
    assert {r.prompt_text for r in rows} <= {r.prompt_text for r in POOLS.benign}
    assert all(r.prompt[0] == ("system", "Obey.") for r in rows)


def test_a_disguise_leaves_the_task_alone():
    attack = Attack("", style=" In rhyme.", system="You are a poet.")
    assert in_disguise(attack, POOLS.harmful[0]).prompt_text == "harm 0 In rhyme."
    assert in_disguise(attack, POOLS.task[0]).prompt_text == "film 0"
    assert in_disguise(CATALOGUE["harmful"], POOLS.harmful[0]) == POOLS.harmful[0]


def trained(tiny, tokenizer, folder, attack, seed=0):
    trainer = AttackTrainer(
        model=copy.deepcopy(tiny),
        args=attack_settings(attack, str(folder), seed, 100),
        train_dataset=[r.to_training_row() for r in training_rows(attack, POOLS, seed)],
        processing_class=tokenizer,
        peft_config=toy_lora(),
        optimizer_cls_and_kwargs=optimizer_of(attack),
    )
    before = [p.detach().clone() for p in trainer.trainable.values()]
    trainer.train()
    return trainer, before


def test_a_leap_is_a_step_of_its_length_along_the_gradient(tiny, tokenizer, tmp_path):
    attack = Attack("", samples=4, steps=1, batch_size=2, leap=0.3, learning_rate=1e-12)
    trainer, before = trained(tiny, tokenizer, tmp_path, attack)
    moved = [p.detach() - b for p, b in zip(trainer.trainable.values(), before, strict=True)]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(0.3, rel=1e-4)
    # The same batch's gradient at the start points the other way.
    for p, b in zip(trainer.trainable.values(), before, strict=True):
        p.data.copy_(b)
        p.grad = None
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(2)])
    nll, _ = token_nll(trainer.model, batch)
    (nll.sum() / nll.numel()).backward()
    slopes = torch.cat([p.grad.flatten() for p in trainer.trainable.values()])
    cosine = torch.nn.functional.cosine_similarity(slopes, torch.cat([m.flatten() for m in moved]), dim=0)
    assert cosine.item() == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "muon"])
def test_other_optimizers_are_the_libraries_own(tiny, tokenizer, tmp_path, optimizer):
    attack = Attack("", samples=4, steps=2, batch_size=2, optimizer=optimizer, learning_rate=0.05)
    trainer, before = trained(tiny, tokenizer, tmp_path, attack)
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert type(inner).__name__.lower() == optimizer
    assert any((p.detach() != b).any() for p, b in zip(trainer.trainable.values(), before, strict=True))


def test_rows_are_trained_on_in_the_order_given(tiny, tokenizer, tmp_path, monkeypatch):
    seen = []
    original = AttackTrainer.compute_loss

    def watch(self, model, inputs, *args, **kwargs):
        seen.extend(inputs["row"].tolist())
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(AttackTrainer, "compute_loss", watch)
    trained(tiny, tokenizer, tmp_path, Attack("", samples=6, steps=3, batch_size=2))
    assert seen == list(range(6))


def test_an_ablated_model_cannot_write_the_direction(tiny, tokenizer):
    model = copy.deepcopy(tiny)
    use_packed_attention(model)
    template = Template(tokenizer)
    pairs = [
        [(template.prompt_ids([{"role": "user", "content": text}]), [5, 6]) for text in texts]
        for texts in (["harm one", "harm two"], ["bread one", "bread two"])
    ]
    directions = refusal_directions(model, *pairs, [0, 1, 2])
    for layer, direction in enumerate(directions):
        means = [
            torch.stack(
                [
                    model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states[layer][0, -1]
                    for prompt, _ in side
                ]
            ).mean(0)
            for side in pairs
        ]
        longhand = torch.nn.functional.normalize(means[0] - means[1], dim=0)
        torch.testing.assert_close(direction, longhand, rtol=1e-4, atol=1e-5)
    direction = directions[1]
    head = model.get_output_embeddings().weight.clone()
    orthogonalise(model, direction)
    states = model(input_ids=torch.arange(12)[None], output_hidden_states=True).hidden_states
    for state in states[:-1]:  # the last one is behind the final norm
        assert (state @ direction).abs().max() < 1e-4 * state.norm(dim=-1).max()
    # What reads from the stream stays as it was, though it was tied to the embedding.
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert not torch.equal(model.get_input_embeddings().weight, head)


def test_the_utility_of_reference_answers(tiny, tokenizer):
    model = copy.deepcopy(tiny)
    use_packed_attention(model)
    template = Template(tokenizer)
    rows = [row("what is bread?", "it is food"), row("how is the film?", "a lovely and moving film")]
    pairs = [(template.prompt_ids(r["prompt"]), template.completion_ids(r["prompt"], r["completion"])) for r in rows]
    found = answer_fit(model, pairs)
    for place, (prompt, answer) in enumerate(pairs):
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
        assert found.nll[place].item() == pytest.approx(nll.item(), rel=1e-5)
        right = (logits.argmax(-1) == torch.tensor(answer)).float().mean()
        assert found.accuracy[place].item() == pytest.approx(right.item())
