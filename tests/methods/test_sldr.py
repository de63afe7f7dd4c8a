"""SLDR: κ, the two layers, the joined adapter and the router's score longhand, and the whole way from files to routed answers."""

import copy
import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import references as ref
import torch
from peft import PeftModel, get_peft_model
from repairing import MODEL, random, two_adapters, weights
from safetensors.torch import load_file, save_file
from told import refused, untold
from training import config, trained

import titer as package
from titer import methods
from titer.data.records import Record
from titer.errors import TiterError
from titer.infer import routing as routings
from titer.infer.routing import harm_scores, last_states, read_routing, routing_beside
from titer.infer.serving import SERVING, Router, Serving, read_serving, write_serving
from titer.jobs import answers, routers, trainings
from titer.jobs.repairs import own_rows
from titer.jobs.work import training
from titer.methods import Method
from titer.methods.repair import sldr
from titer.methods.repair.adapters import read_adapter
from titer.methods.repair.joined import write_joined
from titer.methods.repair.one_shot import ONE_SHOT
from titer.methods.repair.sldr import SLDR, SldrConfig, SldrTrainer
from titer.models import Template, load_tokenizer
from titer.results.artefacts import read_inferences
from titer.results.routes import routes_of
from titer.testing import toy_harmful_rows, toy_lora, toy_rows, write_adapter
from titer.testing.repairs import LAYERS

HARMFUL = [Record.from_row(row) for row in toy_harmful_rows()]
HELPFUL = [Record.from_row(row) for row in toy_rows(9)]
STREAMS = {"harmful_dataset": HARMFUL, "helpful_dataset": HELPFUL}
ROWS = {"harmful_dataset": toy_harmful_rows(), "helpful_dataset": toy_rows(9)}
TWO = {"l_min": 0, "l_max": 1}
FAST = {"max_steps": 4, "learning_rate": 0.05, "bf16": False, "lr_scheduler_type": "constant", **TWO}


def settings(**values):
    return methods.settings(SLDR, values, "settings", "unused", 0)


# --- what is trained -------------------------------------------------------------------------------------------------


def longhand(tiny, adapter, refusing, layer_scale):
    """The toy with the tuned adapter's products added as whole matrices, and the factors that are trained, as one function."""
    dense = copy.deepcopy(tiny).double()
    dense.set_attn_implementation("sdpa")
    for name, (b, a, scale) in adapter.items():
        dense.get_submodule(name).weight.data += scale * b @ a
    whole = dict(dense.named_parameters())

    def model(**inputs):
        changed = dict(whole)
        for name, (b, a) in refusing.items():
            changed[f"{name}.weight"] = whole[f"{name}.weight"] + layer_scale * b @ a
        return torch.func.functional_call(dense, changed, (), inputs)

    return model


def factors_of(model, scale):
    """B, A and the scale of each layer that a PEFT model's adapter changes."""
    return {
        name: (
            module.lora_B["default"].weight.detach().clone(),
            module.lora_A["default"].weight.detach().clone(),
            scale,
        )
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "lora_B") and "default" in module.lora_B
    }


def test_a_step_trains_the_refusal_adapter_on_the_tuned_models_refusals(tiny, tokenizer, tmp_path):
    torch.manual_seed(5)
    tuned = get_peft_model(copy.deepcopy(tiny).double(), toy_lora()).double()
    user = factors_of(tuned, 2.0)
    args = config(SldrConfig, tmp_path, optim="sgd", weight_decay=0.0, per_device_train_batch_size=3, **TWO)
    rows = [record.to_training_row() for record in sldr.pairs(args, STREAMS)[:3]]
    lora = toy_lora(r=3, lora_alpha=12)  # begins with B other than zero, so that A has a gradient
    before = {}

    class Watched(SldrTrainer):
        def before_step(self, model):
            before.update(factors_of(self.model, 4.0))

    trainer, (ours,) = trained(Watched, args, tuned, tokenizer, rows, peft_config=lora, **ROWS)
    names = [name for name in LAYERS if name in before]
    assert names == LAYERS  # the toy has two layers
    refusing = {name: (before[name][0].requires_grad_(), before[name][1].requires_grad_()) for name in names}
    model = longhand(tiny, user, refusing, 4.0)
    pairs = ref.encode(tokenizer, toy_harmful_rows()[:3], answer=lambda place, row: row["refusal"])
    slopes = dict(
        zip(
            names,
            _pairs(torch.autograd.grad(ref.mean_nll(model, pairs), [f for name in names for f in refusing[name]])),
        )
    )
    order = [name.rpartition(".lora_") for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    expected = [slopes[name.removeprefix("base_model.model.")]["BA".index(which[0])] for name, _, which in order]
    assert ref.relative_error(ours, expected) < 1e-10
    after = factors_of(trainer.model, 4.0)
    moved = [
        [factor - args.learning_rate * slope for factor, slope in zip(refusing[name], slopes[name])] for name in names
    ]
    assert (
        ref.relative_error(
            [factor for name in names for factor in after[name][:2]], [one.detach() for pair in moved for one in pair]
        )
        < 1e-10
    )


def _pairs(flat):
    return list(zip(flat[::2], flat[1::2]))


@pytest.fixture
def deep():
    """A toy of five layers."""
    made = copy.deepcopy(MODEL.config)
    made.num_hidden_layers = 5
    torch.manual_seed(0)
    return type(MODEL)(made)


def test_only_the_two_layers_are_trained_and_everything_else_stays(deep, tokenizer, tmp_path):
    args = config(SldrConfig, tmp_path, l_min=3, l_max=1, max_steps=3)
    rows = [record.to_training_row() for record in sldr.pairs(args, STREAMS)]
    before = {name: weight.clone() for name, weight in deep.state_dict().items()}
    trainer, _ = trained(SldrTrainer, args, deep, tokenizer, rows, **ROWS)
    named = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    places = {f"model.layers.{layer}.self_attn.{which}_proj" for layer in (1, 3) for which in "qkv"}
    assert named == {f"base_model.model.{place}.lora_{factor}.default.weight" for place in places for factor in "AB"}
    own = trainer.model.peft_config["default"]
    assert (own.r, own.lora_alpha, sorted(own.target_modules)) == (32, 4, ["k_proj", "q_proj", "v_proj"])
    moved = [weight for name, weight in trainer.model.named_parameters() if "lora_B" in name]
    assert all(weight.abs().max() > 0 for weight in moved)
    after = trainer.model.get_base_model().state_dict()
    for name, weight in before.items():
        place = name.removesuffix(".weight")
        assert torch.equal(after[f"{place}.base_layer.weight" if place in places else name], weight), name


def test_a_model_that_is_given_keeps_its_weights(tiny, tokenizer, tmp_path):
    """The tuned adapter is merged into new tensors: others may share the old ones."""
    base = copy.deepcopy(tiny)
    held = [(weight.detach(), weight.detach().clone()) for weight in base.parameters()]
    tuned = get_peft_model(base, toy_lora())
    args = config(SldrConfig, tmp_path, **TWO)
    trainer = SldrTrainer(model=tuned, args=args, train_dataset=toy_rows(2), processing_class=tokenizer, **ROWS)
    assert all(torch.equal(shared, before) for shared, before in held)
    merged = trainer.model.get_base_model().model.layers[1].self_attn.v_proj.base_layer.weight
    assert not torch.equal(merged, MODEL.model.layers[1].self_attn.v_proj.weight)


def test_the_defaults_are_those_of_the_released_code():
    args = settings()
    assert (args.learning_rate, args.num_train_epochs, args.per_device_train_batch_size) == (5e-4, 20, 10)
    assert (args.weight_decay, args.lr_scheduler_type, args.warmup_steps) == (0.1, "linear", 0.1)
    assert (args.rank, args.alpha, args.target_modules) == (32, 4, ["q_proj", "k_proj", "v_proj"])
    assert (args.pairs, args.prototypes, args.top, args.threshold) == (100, 100, 100, 0.0)
    assert args.l_min is args.l_max is None


def test_the_pairs_are_the_first_harmful_rows_with_their_refusals():
    rows = own_rows(SLDR, settings(pairs=3), STREAMS)
    assert [row.prompt for row in rows] == [row.prompt for row in HARMFUL[:3]]
    assert [row.completion[0].content for row in rows] == [row.refusal for row in HARMFUL[:3]]
    assert len(own_rows(SLDR, settings(), STREAMS)) == 8
    [bare] = own_rows(SLDR, settings(pairs=1), {**STREAMS, "harmful_dataset": [Record.make("how?", "like this")]})
    assert bare.completion[0].content != "like this"


def test_settings_that_make_no_two_layers_are_refused(tiny, tokenizer, tmp_path):
    for values in ({"l_min": 1}, {"l_max": 1}, {"l_min": 1, "l_max": 1}):
        with pytest.raises(TiterError, match="`l_min` and `l_max`"):
            SldrConfig(output_dir=str(tmp_path), report_to="none", **values)
    for values, said in (({}, "which is not said"), ({"l_min": 0, "l_max": 2}, "2 layers are counted from 0")):
        args = config(SldrConfig, tmp_path, **values)
        with pytest.raises(TiterError, match=said):
            SldrTrainer(
                model=copy.deepcopy(tiny), args=args, train_dataset=toy_rows(2), processing_class=tokenizer, **ROWS
            )
    for values in ({"prototypes": 1}, {"threshold": 3}, {"top": 0}, {"rank": 0}, {"pairs": 0}, {"l_min": -1}):
        [name] = values
        with pytest.raises(TiterError, match=name):
            settings(**values)


# --- which layers ----------------------------------------------------------------------------------------------------


def count_longhand(model, tokenizer, prompts, words):
    """Refusals among greedy answers of 32 tokens, by the library's own loop, prompt by prompt."""
    count = 0
    for ids in prompts:
        said = model.generate(
            torch.tensor([ids]),
            max_new_tokens=32,
            do_sample=False,
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        )
        text = tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True).lower()
        count += any(word in text for word in words)
    return count


def test_kappa_is_the_steepest_change_of_refusals_by_the_scale_of_a_layer(tiny, tokenizer, monkeypatch):
    model, words = copy.deepcopy(tiny).double(), ("a", "th")
    monkeypatch.setattr(sldr, "REFUSES", words)
    template = Template(tokenizer)
    prompts = [template.prompt_ids(record.to_training_row()["prompt"]) for record in HELPFUL[:4]]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = sldr.layer_kappa(model, template, prompts)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    expected = []
    for layer in range(2):
        slopes = []
        for alpha in (0.1, 0.2):
            counts = []
            for factor in (1 + alpha, 1 - alpha):
                other = copy.deepcopy(tiny).double()
                attention, mlp = other.model.layers[layer].self_attn, other.model.layers[layer].mlp
                for module in (
                    *(getattr(attention, f"{one}_proj") for one in "qkvo"),
                    mlp.up_proj,
                    mlp.gate_proj,
                    mlp.down_proj,
                ):
                    module.weight.data *= factor
                counts.append(count_longhand(other, tokenizer, prompts, words))
            slopes.append((counts[0] - counts[1]) / alpha)
        expected.append(max(slopes))
    assert found == expected
    assert any(found)


def test_norms_are_not_scaled_and_an_error_puts_the_weights_back(tiny):
    layer = copy.deepcopy(tiny).model.layers[0]
    before = {name: weight.clone() for name, weight in layer.state_dict().items()}
    inside = {}

    def interrupted():
        with sldr.scaled(layer, 1.1):
            inside.update((name, weight.clone()) for name, weight in layer.state_dict().items())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(weight, before[name]) for name, weight in layer.state_dict().items())
    same = {name for name in before if torch.equal(before[name], inside[name])}
    assert same == {"input_layernorm.weight", "post_attention_layernorm.weight"}


def test_refusals_are_told_by_the_released_words():
    assert all(
        map(sldr.refuses, ("I CANNOT do that", "Sorry, no", "It's important to know", "It is not right", "I can not"))
    )
    assert not any(map(sldr.refuses, ("", "I will not do that", "Sure, here is how", "cant")))


def found_layers(monkeypatch, kappa, streams=STREAMS, **values):
    asked = []
    monkeypatch.setattr(sldr, "layer_kappa", lambda model, template, prompts: asked.append(prompts) or kappa)
    template = SimpleNamespace(prompt_ids=lambda prompt: prompt[-1]["content"])
    return *sldr.find_layers(settings(**values), None, template, streams), *asked


def test_the_layers_are_those_of_the_least_and_the_largest_kappa(monkeypatch):
    found, measured, _ = found_layers(monkeypatch, [0.0, 5.0, -10.0, 5.0, -10.0])
    assert found == {"l_min": 2, "l_max": 1}  # the first of several, as released
    assert measured["kappa"] == [0.0, 5.0, -10.0, 5.0, -10.0]
    for kappa in ([0.0, 0.0, 0.0], [10.0]):
        with refused("κ", "l_min", "lookalikes"):
            found_layers(monkeypatch, kappa)


def test_they_are_found_by_harmless_prompts_that_look_harmful(monkeypatch):
    looking = [dataclasses.replace(record, origin="lookalike") for record in HELPFUL[4:7]]
    streams = {**STREAMS, "helpful_dataset": [*HELPFUL[:4], *looking]}
    _, measured, prompts = found_layers(monkeypatch, [0.0, 1.0], streams)
    assert prompts == [record.prompt[-1].content for record in looking]
    assert measured["probes"] == 3
    assert len(found_layers(monkeypatch, [0.0, 1.0], streams, probes=2)[2]) == 2
    assert len(found_layers(monkeypatch, [0.0, 1.0])[2]) == 9  # rows of one's own say nothing of their kind
    assert sldr.probes(settings(**TWO), streams) == ()


# --- one adapter of two ----------------------------------------------------------------------------------------------


def deltas(folder):
    """What PEFT adds to each weight that an adapter changes, in float64."""
    model = PeftModel.from_pretrained(copy.deepcopy(MODEL).double(), str(folder)).double()
    return {
        name: module.get_delta_weight("default")
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


SECOND = [name for name in LAYERS if ".1." in name]


@pytest.mark.parametrize(
    ("tuned", "change"),
    [
        (LAYERS, {}),
        ([name for name in LAYERS if "k_proj" not in name], {"target_modules": ["q_proj", "v_proj"]}),
        (LAYERS, {"use_rslora": True}),
        (LAYERS, {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}),
        (LAYERS[:3], {"layers_to_transform": [0]}),
        (LAYERS[:3], {"layers_to_transform": [0], "r": 2}),
        (LAYERS, {"target_modules": r".*self_attn\.[qkv]_proj"}),
    ],
    ids=["plain", "without k", "rslora", "patterns", "another layer", "another layer of rank 2", "pattern of names"],
)
def test_the_joined_adapter_adds_exactly_what_the_two_add(tmp_path, tuned, change):
    MODEL.save_pretrained(tmp_path / "base")
    ranks = {name: 2 if "rank_pattern" in change and "0.self_attn.q" in name else change.get("r", 4) for name in LAYERS}
    user = {}
    for number, name in enumerate(tuned):
        out, into = MODEL.get_submodule(name).weight.shape
        user[f"base_model.model.{name}.lora_A.weight"] = random(ranks[name], into, seed=number)
        user[f"base_model.model.{name}.lora_B.weight"] = random(out, ranks[name], seed=50 + number)
    write_adapter(tmp_path / "tuned", tmp_path / "base", user, **change)
    refusing = {name: weight for name, weight in weights(3, seed=9).items() if ".layers.1." in name}
    write_adapter(tmp_path / "refusing", tmp_path / "base", refusing, r=3, lora_alpha=5, layers_to_transform=[1])
    mine, theirs = (read_adapter(tmp_path / name, str(tmp_path / "base")) for name in ("tuned", "refusing"))
    write_joined(mine, theirs, tmp_path / "joined", SimpleNamespace(save_pretrained=lambda folder: None))
    one, two, both = (deltas(tmp_path / name) for name in ("tuned", "refusing", "joined"))
    assert two.keys() == {*SECOND}
    assert both.keys() == one.keys() | two.keys()
    for name, delta in both.items():
        expected = sum(part[name] for part in (one, two) if name in part)
        assert float((delta - expected).abs().max()) < 1e-13 * float(expected.abs().max()), name
    written = load_file(tmp_path / "joined" / "adapter_model.safetensors")
    for name, weight in user.items():
        kept = written[name][: weight.shape[0]] if "lora_A" in name else written[name][:, : weight.shape[1]]
        assert torch.equal(kept, weight), name
    assert (
        read_adapter(tmp_path / "joined", str(tmp_path / "base")).factors.keys() == both.keys()
    )  # it can be repaired again


# --- the router ------------------------------------------------------------------------------------------------------


def unit(*shape, seed):
    return torch.nn.functional.normalize(random(*shape, seed=seed))


@pytest.mark.parametrize("top", [1, 3, 100])
def test_the_score_is_the_mean_of_the_largest_differences_of_pairs(top):
    states, harmful, benign = unit(4, 6, seed=1), unit(5, 6, seed=2), unit(5, 6, seed=3)

    def cosine(one, other):
        return sum(float(a) * float(b) for a, b in zip(one, other)) / float(one.norm() * other.norm())

    expected, without = [], []
    for place, state in enumerate(states):
        pairs = [cosine(state, h) - cosine(state, b) for h, b in zip(harmful, benign)]
        largest = sorted(pairs, reverse=True)[:top]
        expected.append(sum(largest) / len(largest))
        largest = sorted((one for number, one in enumerate(pairs) if number != place), reverse=True)[:top]
        without.append(sum(largest) / len(largest))
    found = harm_scores(states, harmful, benign, top)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    found = harm_scores(states, harmful, benign, top, own=torch.arange(4))
    assert torch.allclose(found, torch.tensor(without, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_state_is_that_of_the_last_token_of_the_users_turn(tiny, tokenizer, layer, monkeypatch):
    monkeypatch.setattr(routings, "BATCH_SIZE", 3)
    model, template = copy.deepcopy(tiny).double(), Template(tokenizer)
    conversations = [record.to_training_row()["prompt"] for record in HARMFUL]
    found = last_states(model, [template.asked_ids(one) for one in conversations], layer)
    for state, conversation in zip(found, conversations, strict=True):
        ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=False, return_dict=False)
        assert tokenizer.decode(ids).endswith("<|im_end|>\n")
        alone = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0, -1].float()
        assert torch.allclose(state, alone / alone.norm(), rtol=0, atol=1e-6)
    assert torch.allclose(found.norm(dim=1), torch.ones(len(found)))


def test_a_score_at_the_threshold_is_off(tiny, tokenizer):
    template, same = Template(tokenizer), unit(5, 32, seed=2).float()
    prompts = [template.asked_ids(record.to_training_row()["prompt"]) for record in HARMFUL[:2]]
    for threshold, on in ((0.0, False), (-1e-6, True)):
        routing = routings.Routing(Router(1, 3, threshold), same, same, None, "")
        assert routing.on(tiny, prompts) == [on, on]


def test_prototypes_are_prompts_of_both_kinds_under_the_trained_model(tiny, tokenizer):
    model, template = copy.deepcopy(tiny).double(), Template(tokenizer)
    args = settings(l_min=1, l_max=0, prototypes=4, top=2, threshold=-0.01)
    router, harmful, benign, measured = sldr.prototypes(args, model, template, STREAMS, "")
    assert router == Router(0, 2, -0.01)
    for found, records in ((harmful, HARMFUL), (benign, HELPFUL)):
        ids = [template.asked_ids(record.to_training_row()["prompt"]) for record in records[:4]]
        assert torch.equal(found, last_states(model, ids, 0))
    scores = [harm_scores(each, harmful, benign, 2, torch.arange(4)) for each in (harmful, benign)]
    on = [int((each > -0.01).sum()) for each in scores]
    assert measured == {"prototypes": 4, "harmful_on": on[0], "benign_on": on[1]}
    served = sldr.prototypes(args, model, template, STREAMS, "Be safe.")[1]
    assert not torch.allclose(served, harmful)  # the router sees what the model is asked
    few = {**STREAMS, "helpful_dataset": HELPFUL[:1]}
    with refused("two harmless"):
        sldr.prototypes(args, model, template, few, "")


# --- from files to answers -------------------------------------------------------------------------------------------


def write_rows(path, rows, origin):
    path.write_text("".join(json.dumps({**row, "origin": origin}) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = two_adapters(tmp_path_factory.mktemp("sldr"))
    place.data = {
        "harmful": write_rows(place.folder / "harmful.jsonl", toy_harmful_rows(), "harmful"),
        "helpful": write_rows(place.folder / "helpful.jsonl", toy_rows(9), "helpful"),
        "lookalikes": write_rows(
            place.folder / "looking.jsonl",
            [{"prompt": f"how do I kill {n} weeds", "completion": "with salt"} for n in range(6)],
            "lookalike",
        ),
    }
    return place


def guard(place, output, tuned="tuned", method="sldr", **more):
    folder = place.folder
    given = {**FAST, **more.pop("settings", {})} if method == "sldr" else more.pop("settings", {})
    return package.repair(
        aligned=folder / "aligned", model=folder / tuned, output=folder / output, method=method, settings=given,
        **(place.data if method == "sldr" else {}), **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(place):
    """A guarded adapter: read it, do not change it."""
    return guard(place, "out")


def test_what_a_repair_leaves(place, done):
    files = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
    assert {
        "router/prototypes.safetensors",
        "router/adapter/adapter_model.safetensors",
        "router.json",
        SERVING,
    } <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".part", ".pkl"))]
    serving = read_serving(done.adapter)
    assert serving == Serving("", routers.ABOUT, Router(1, 100, 0.0))
    base, tuned = str(place.folder / "base"), load_file(place.folder / "tuned" / "adapter_model.safetensors")
    off = read_adapter(done.folder / "router" / "adapter", base)
    for name, weight in load_file(off.folder / "adapter_model.safetensors").items():
        assert torch.equal(weight, tuned[name])
    # The adapter alone has the tuned one's factors, and refusals beside them.
    on = load_file(done.adapter / "adapter_model.safetensors")
    for name, weight in tuned.items():
        assert torch.equal(on[name][: weight.shape[0], : weight.shape[1]], weight)
    assert {weight.shape[0] for name, weight in on.items() if "lora_A" in name} == {36}
    told = json.loads((done.folder / "router.json").read_text())
    assert told["prototypes"] == 4  # half of the harmful rows are the defender's
    assert done.guarded == (
        f"refuses on {told['harmful_on']} of 4 of the defender's harmful prompts, and on {told['benign_on']} of 4 of the harmless ones"
    )


def test_it_is_the_refusal_adapter_that_was_trained(place, done):
    """What the joined adapter adds beyond the tuned one has the rank and the scale of the settings, and is not zero."""
    one, both = deltas(place.folder / "tuned"), deltas(done.adapter)
    for name in LAYERS:
        more = both[name] - one[name]
        assert 0 < float(more.abs().max()) < float(one[name].abs().max())


def mixed(place, done, name):
    """A copy whose router's threshold lies in the middle of the scores of prompts, with these prompts."""
    copied = place.folder / name
    shutil.copytree(done.folder, copied)
    routing = routing_beside(copied / "adapter")
    template = Template(load_tokenizer(str(place.folder / "base")))
    records = [*HARMFUL[:4], *HELPFUL[:4]]
    model = trainings.fresh_model(str(place.folder / "base"), copied / "adapter", trainable=False)
    ids = [template.asked_ids(record.to_training_row()["prompt"]) for record in records]
    scores = harm_scores(last_states(model, ids, 1), routing.harmful, routing.benign, 100)
    threshold = float(scores.sort().values[3:5].mean())
    write_serving(copied, Serving("", "a router", Router(1, 100, threshold)))
    return copied / "adapter", [(record, 6) for record in records], [bool(score > threshold) for score in scores]


def test_each_prompt_is_answered_by_the_weights_that_the_router_chooses(place, done):
    base = str(place.folder / "base")
    adapter, prompts, expected = mixed(place, done, "mixed")
    texts, on = answers.routed_answers(base, adapter, prompts, routing_beside(adapter))
    assert on == expected
    assert sum(on) == 4
    always, never = (answers.answer(base, one, prompts) for one in (adapter, place.folder / "tuned"))
    assert texts == [one if chosen else other for chosen, one, other in zip(on, always, never)]
    assert texts != always
    assert texts != never


def test_evaluate_routes_and_says_so_and_can_leave_it_off(place, done, titer, tmp_path):
    few = ["--samples", "3", "--max-new-tokens", "2", "--harmful", place.data["harmful"]]
    adapter, _, _ = mixed(place, done, "evaluated")
    code, told, error = titer("evaluate", adapter, "--output", tmp_path / "with", *few)
    assert code == 0, error
    assert not untold(told, "A served guard", "refuses on", "harmful prompts", "whoever holds the weights")
    rows = _rows(tmp_path / "with")
    digest = routing_beside(adapter).digest
    assert {row.generation["router"] for row in rows} == {digest}
    assert {row.generation["refusal_adapter"] for row in rows} <= {True, False}
    assert "serving" not in rows[0].generation
    [counts] = routes_of(rows).values()
    assert sum(asked for _, asked in counts.values()) == len(rows)
    assert f"refuses on {sum(on for on, _ in counts.values())} of {len(rows)} prompts" in " ".join(told.split())
    (tmp_path / "with" / "results.json").unlink()
    code, told, error = titer("evaluate", "--rejudge", tmp_path / "with", "--judge", "keywords")
    assert code == 0, error
    assert not untold(told, "A served guard", f"a router of SHA-256 {digest}")
    code, told, error = titer("evaluate", adapter, "--output", tmp_path / "without", "--without-serving", *few)
    assert code == 0, error
    assert "served guard" not in told
    assert not any("router" in row.generation for row in _rows(tmp_path / "without"))


def _rows(folder):
    return read_inferences(folder / "inferences.jsonl")


def test_the_command_line_says_what_a_guard_is_worth(place, titer, monkeypatch):
    monkeypatch.chdir(place.folder)
    line = ["repair", "--method", "sldr", "--aligned", "aligned", "--model", "tuned", "--output", "told"]
    line += [f"--{name}={value}" for name, value in place.data.items()]
    line += [f"--set={name}={str(value).lower()}" for name, value in FAST.items()]
    code, told, error = titer(*line)
    assert code == 0, error
    assert not untold(
        told, "A served guard", "refuses on", "of the defender's harmful prompts", "whoever holds the weights"
    )
    _, told, _ = titer("methods", "list")
    assert "served guard" in told
    _, told, _ = titer("methods", "show", "sldr")
    assert not untold(told, "a served guard", "nothing against open weights", "aligned adapter, tuned adapter")


def test_layers_are_found_on_the_aligned_model_and_once(place, monkeypatch):
    """A training that was interrupted goes on with the layers that it began with."""
    seen = []

    def watching(model, template, prompts):
        seen.append(model.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone())
        return [1.0, 0.0]

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(sldr, "layer_kappa", watching)
    step = SldrTrainer.training_step
    found = {"settings": {"l_min": None, "l_max": None, "save_steps": 1}}
    with monkeypatch.context() as stopped:
        stopped.setattr(SldrTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            guard(place, "found", **found)
    resumed = guard(place, "found", **found)
    assert len(seen) == 1
    aligned = deltas(place.folder / "aligned")["model.layers.0.self_attn.q_proj"]
    weight = MODEL.state_dict()["model.layers.0.self_attn.q_proj.weight"].double() + aligned
    assert torch.allclose(seen[0].double(), weight, atol=1e-5)
    told = json.loads((resumed.folder / "router.json").read_text())
    assert (told["settings"], told["kappa"]) == ({"l_min": 1, "l_max": 0}, [1.0, 0.0])
    assert read_serving(resumed.adapter).router.layer == 0
    whole = guard(place, "whole", **found)
    assert len(seen) == 2
    files = ("adapter/adapter_model.safetensors", "router/prototypes.safetensors", SERVING)
    assert all((resumed.folder / file).read_bytes() == (whole.folder / file).read_bytes() for file in files)


# --- files that are not what they should be --------------------------------------------------------------------------


def test_a_routers_hash_is_of_all_that_it_depends_on(place, done, tmp_path):
    first = routing_beside(done.adapter)
    shutil.copytree(done.folder, tmp_path / "out")
    adapter = tmp_path / "out" / "adapter"
    assert routing_beside(adapter).digest == first.digest
    assert read_routing(adapter, dataclasses.replace(first.router, threshold=0.1)).digest != first.digest
    prototypes = tmp_path / "out" / "router" / "prototypes.safetensors"
    save_file({"harmful": first.benign, "benign": first.harmful}, prototypes)
    assert routing_beside(adapter).digest != first.digest


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "router" / "prototypes.safetensors").unlink(), ("prototypes.safetensors", "not there")),
        (lambda folder: shutil.rmtree(folder / "router" / "adapter"), ("router/adapter", "not there")),
        (lambda folder: shutil.rmtree(folder / "router"), ("prototypes.safetensors", "not there")),
        (lambda folder: (folder / "router" / "prototypes.safetensors").write_bytes(b"x" * 40), ("damaged",)),
        (lambda folder: _cut(folder / "router" / "prototypes.safetensors"), ("damaged",)),
        (lambda folder: _cut(folder / "router" / "adapter" / "adapter_model.safetensors"), ("damaged",)),
        (lambda folder: _save(folder, harmful=torch.eye(3)), ("harmful", "benign")),
        (lambda folder: _save(folder, harmful=torch.eye(3), benign=torch.eye(4)), ("float32", "shape")),
        (lambda folder: _save(folder, harmful=torch.eye(3).half(), benign=torch.eye(3).half()), ("float32",)),
        (lambda folder: _save(folder, harmful=torch.eye(3), benign=torch.eye(3) * 2), ("length 1",)),
        (lambda folder: _save(folder, harmful=torch.eye(3), benign=torch.eye(3) * float("nan")), ("nan",)),
        (lambda folder: _pickled(folder / "router" / "adapter"), ("safetensors",)),
        (lambda folder: _elsewhere(folder), ("lies elsewhere",)),
        (lambda folder: _based(folder, "another/model"), ("another/model",)),
    ],
)  # fmt: skip
def test_files_of_a_router_that_are_damaged_are_refused(done, tmp_path, damage, told):
    folder = tmp_path / "out"
    shutil.copytree(done.folder, folder)
    damage(folder)
    with refused(*told):
        routing_beside(folder / "adapter")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _save(folder, **tensors):
    save_file(tensors, folder / "router" / "prototypes.safetensors")


def _pickled(folder):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def _elsewhere(folder):
    path = folder / "router" / "prototypes.safetensors"
    shutil.move(path, folder.parent / "secret")
    path.symlink_to(folder.parent / "secret")


def _based(folder, base):
    path = folder / "router" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))


def test_a_router_of_another_model_is_refused(place, done, tmp_path):
    shutil.copytree(done.folder, tmp_path / "out")
    _save(tmp_path / "out", harmful=torch.eye(3), benign=torch.eye(3))
    base, adapter = str(place.folder / "base"), tmp_path / "out" / "adapter"
    with refused("3 numbers", "32"):
        answers.routed_answers(base, adapter, [(HARMFUL[0], 2)], routing_beside(adapter))
    routing = dataclasses.replace(routing_beside(adapter), router=Router(2, 5, 0.0))
    with refused("layer 2", "2 layers"):
        answers.routed_answers(base, adapter, [(HARMFUL[0], 2)], routing)
    with refused("names no router"):
        routing_beside(place.folder / "tuned")


def test_what_a_router_was_fitted_to_is_not_repaired_again(place, done):
    for method in ("one_shot", "safelora"):
        with refused("router", "fit the router last"):
            guard(
                place,
                f"again-{method}",
                tuned="out/adapter",
                method=method,
                settings={"max_steps": 1} if method == "one_shot" else {},
            )
    with refused("router", "fit the router last"):
        guard(place, "again", tuned="out/adapter")


def test_a_training_without_a_tuned_adapter_and_an_adapter_that_is_no_plain_lora_are_refused(place, tmp_path):
    args = methods.settings(SLDR, FAST, "settings", str(tmp_path / "c"), 0)
    with refused("tuned adapter"):
        trainings.train(SLDR, args, str(place.folder / "base"), None, {}, HARMFUL, STREAMS, tmp_path / "none")
    base = type(MODEL).from_pretrained(place.folder / "base")
    get_peft_model(base, toy_lora(use_dora=True)).save_pretrained(place.folder / "dora" / "adapter")
    with refused("use_dora"):
        guard(place, "no", tuned="dora/adapter")
    assert not (place.folder / "no" / "adapter").exists()


def test_what_a_tuned_adapter_is_served_with_stays(place):
    """A system prompt goes on to the repaired adapter, with a router beside it where there is one."""
    shutil.copytree(place.folder / "tuned", place.folder / "prompted" / "adapter")
    write_serving(place.folder / "prompted", Serving("Be safe.", "a safety prompt"))
    patched = guard(
        place, "patched", tuned="prompted/adapter", method="one_shot", settings={"max_steps": 1, "bf16": False}
    )
    assert read_serving(patched.adapter) == Serving("Be safe.", "a safety prompt")
    both = read_serving(guard(place, "both", tuned="prompted/adapter").adapter)
    assert (both.system, both.about) == ("Be safe.", f"a safety prompt and {routers.ABOUT}")
    assert both.router is not None


def test_another_training_takes_away_what_a_guard_left_that_never_came_to_a_checkpoint(place):
    out = place.folder / "taken"
    shutil.copytree(place.folder / "tuned", out / "router" / "adapter")
    (out / "router.json").write_text('{"inputs": "x", "settings": {}}')
    write_serving(out, Serving("", "a router", Router(1, 5, 0.0)))
    patched = guard(place, "taken", method="one_shot", settings={"max_steps": 1, "bf16": False})
    assert patched.guarded is None
    assert {path.name for path in out.iterdir()} == {"adapter", "inputs.sha256", "log.jsonl"}


def test_estimates_count_what_is_answered_to_find_layers_and_what_the_router_reads(place):
    base, rows = str(place.folder / "base"), sldr.pairs(settings(), STREAMS)
    given, found = (training("repair sldr", SLDR, settings(**own), base, rows, STREAMS).cost for own in (TWO, {}))
    plain = training("repair one_shot", ONE_SHOT, settings(**TWO), base, rows, STREAMS).cost
    assert given.reads - plain.reads == 2
    assert (given.loads, given.decoded, found.loads) == (0, 0, 1)
    # 9 prompts, two layers, two α up and down; a row takes part in three quarters of the rounds.
    assert found.decoded == 0.75 * 9 * 32 * 2 * 4


def test_a_served_guard_is_a_repair_that_trains():
    assert methods.find("repair", "sldr") is SLDR
    assert SLDR.needs == ("aligned adapter", "tuned adapter", "harmful_dataset", "helpful_dataset")
    assert ONE_SHOT.routed is None
    with refused("own_rows"):
        Method(SldrConfig, SldrTrainer, routed=SLDR.routed)
