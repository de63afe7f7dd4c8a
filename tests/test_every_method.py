"""One experiment with every method of every stage, end to end on the tiny model: as a user would compare them."""

import json

import pytest
import yaml

from titer import methods
from titer.jobs.plan import Silent, execute
from titer.results import artefacts
from titer.workflows import experiment as experiments

TRAINING = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-3, "bf16": False}


def arms():
    """Return an arm for each method, alone among steps that defend nothing."""
    own = {"undefended": [{"align": "sft"}, {"finetune": "sft"}]}
    for stage, name, method in methods.every():
        # Settings in which its terms matter on a model of a few neurons; a step of three says nothing of the papers' values.
        step = {stage: name, "settings": dict(next(iter(method.variants.values())))}
        around = {
            "align": [step, {"finetune": "sft"}],
            "finetune": [{"align": "sft"}, step],
            "repair": [{"align": "sft"}, {"finetune": "sft"}, step],
        }
        if name != "sft":
            own[f"{stage} {name}"] = around[stage]
    return own


def serves(method):
    """Whether a method is a serving control or a served guard."""
    return any(getattr(method, name, None) is not None for name in ("serving", "routed"))


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("every")
    settings = {
        "name": "every",
        "model": str(tiny_folder),
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "data": {"pools": {"defence": 60, "attack": 60, "evaluation": 60}},
        "align": {"samples": 16, "training": TRAINING},
        "finetune": {"samples": 12, "poison_ratios": [0.25], "training": TRAINING},
        "evaluate": {
            "harmful": 3, "lookalikes": 2, "task": 3, "max_new_tokens": 2, "task_max_new_tokens": 2, "weights": 6
        },
        "arms": arms(),
    }  # fmt: skip
    (folder / "every.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    plan = experiments.make_plan(experiments.read_experiment(folder / "every.yaml"), folder / "run")
    complete = execute(plan, Silent())
    assert complete, [f"{stage.name}: {stage.reason}" for stage in plan.jobs.values() if stage.reason]
    return plan


def test_every_method_runs_from_file_to_report(done):
    report = experiments.collect(done, "titer run every", 0.0)
    results, _ = artefacts.read_results(done.run_folder / "results.json")
    scored = {row.arm for row in results if row.phase == "finetuned" and row.metric == "harmful_score"}
    alone = {f"{stage} {name} (adapter alone)" for stage, name, method in methods.every() if serves(method)}
    assert scored == set(arms()) | alone
    assert all(name in report.read_text(encoding="utf-8") for name in arms())


def test_every_method_leaves_another_adapter_than_plain_training(done):
    """None is plain training under another name, but for what acts by the prompt that its model is served with."""
    weights = {}
    for stage in done.jobs.values():
        adapter = stage.folder / "adapter" / "adapter_model.safetensors"
        if adapter.is_file():
            weights.setdefault(adapter.read_bytes(), []).append(stage.name)
    same = {name for names in weights.values() for name in names if len(names) > 1}
    assert same == {"fine-tune undefended p=0.25", "fine-tune finetune ptst p=0.25"}
    assert sum(map(len, weights.values())) >= len(arms())


def test_what_is_declared_is_what_stands_in_the_table(titer):
    code, out, _ = titer("methods", "list", "--json")
    assert code == 0
    rows = {(row["stage"], row["name"]): row for row in json.loads(out)}
    assert list(rows) == [(stage, name) for stage, name, _ in methods.every()]
    booster = rows["align", "booster"]
    assert (booster["gradients"], booster["memory"], booster["source"]["code"]) == (
        3,
        "2 gradients",
        "git-disl/Booster",
    )
