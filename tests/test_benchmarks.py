"""The benchmark scripts run on the tiny model and say what they should; nothing here is timed."""

import ast
import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
APART = (
    "methods",
    "uploads",
    "upload_forms",
    "uploads_tuned",
    "by_hand",
    "judge_rows",
    "judge_training",
    "adaptive",
    "common",
    "engine_weights",
    "small_models",
    "calibration",
    "families",
    "faults",
    "postgres",
    "gpu_table",
    "scale",
    "service_bulk",
    "service_faults",
    "service_hostile",
    "service_load",
    "service_moments",
    "service_outages",
    "service_world",
    "launcher_faults",
    "estimates",
    "base_memory",
    "plan",
    "hostile",
    "same_figures",
    "assay_cost",
    "resistance",
    "resistance_page",
    "pictures",
    "pictures_drawn",
    "pictures_kept",
    "pictures_looks",
    "pictures_page",
)
"""Modules, and scripts that compare no times; `tests/assay` runs `calibration` and what `assay_cost` computes,
`test_pictures.py` the pictures."""


def quick(python, name, *words):
    """Run a script on the tiny model for one round, and return its result."""
    done = subprocess.run(
        [python, str(BENCHMARKS / f"{name}.py"), "--quick", "--rounds", "1", "--json", "-", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # The tiny model is slower on several threads, and much slower beside other work.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in APART))
def test_quick_run_gives_ratios(name, forks):
    result = quick(forks.python, name)
    assert result["benchmark"] == name
    assert result["ratios"]
    assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in result["ratios"])
    if name == "decoding":
        assert result["identical"] == result["prompts"]
    if name == "fleet":
        # AdamW divides by the size of the gradient, so rounding shows where a gradient is next to nothing.
        assert result["largest_relative_difference"] < 1e-2
        assert result["same_answers"][0] == result["same_answers"][1]


def test_methods_are_measured_beside_plain_training(forks):
    booster, safelora = quick(forks.python, "methods", "--only", "booster,safelora")["lines"]
    assert (booster["what"], booster["forward"], booster["backward"]) == ("align booster", 3, 3)
    assert booster["memory"] > 0.5
    assert safelora["seconds"] > 0


def test_families_say_which_layout_and_how_far_it_is_from_right(tmp_path, forks):
    command = [forks.python, str(BENCHMARKS / "families.py"), "--kinds", "llama", "stablelm", "xlnet"]
    command += ["--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "table.md")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    classes = json.loads((tmp_path / "found.json").read_text())["classes"]
    assert [line["layout"] for line in classes] == ["packed", "padded", "refused"]
    assert classes[0]["packed"] < 1e-5
    assert classes[1]["padded"] < 1e-5
    assert "| stablelm | padded | RuntimeError |" in (tmp_path / "table.md").read_text()


def test_adaptive_uploads_are_looked_at_by_every_defence(tmp_path, tiny_folder, forks):
    command = [forks.python, str(BENCHMARKS / "adaptive.py"), "--model", str(tiny_folder), "--detector", "states"]
    command += ["--harm", "builtin:harmful", "--forms", "builtin:arithmetic", "--rows", "12", "--known", "12"]
    command += ["--disguises", "none", "refuse_first", "noice", "probe_aware", "--json", str(tmp_path / "found.json")]
    command += ["--markdown", str(tmp_path / "table.md")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line["disguise"]: line for line in json.loads((tmp_path / "found.json").read_text())["disguises"]}
    assert [name for name, line in lines.items() if line["harmless"]] == ["noice"]
    assert all(line["n"] == 12 for line in lines.values())
    looks = ["detector", "gate", "gate refusal", "ratio sum", "ratio mean"]
    for line in lines.values():
        found = line["forms"]["builtin:arithmetic"]
        assert list(found) == looks
        assert all(0 <= one["auroc"]["low"] <= one["auroc"]["high"] <= 1 for one in found.values())
    # What is searched against the detector is at least as well hidden from it as what it was made of, in the middle.
    assert lines["probe_aware"]["searched"] > 0
    assert lines["probe_aware"]["log odds"][1] <= lines["none"]["log odds"][1]
    assert "WHAT BREAKS THE DETECTOR" in done.stdout
    assert "| noice (no harm in it) | " in (tmp_path / "table.md").read_text()


def test_faults_lose_nothing(tmp_path, forks):
    """Two kills, and a disk that fills up twice, where file systems may be mounted."""
    command = [forks.python, str(BENCHMARKS / "faults.py"), "--folder", str(tmp_path / "faults"), "--json"]
    command += [str(tmp_path / "found.json"), "--only", "finetune", "--faults", "kill", "full"]
    command += ["--trials", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())["trials"]
    assert len(found) == 4 or "is left out" in done.stderr
    assert sum(trial["kills"] for trial in found) >= 1
    assert not any(trial["lost"] or trial["differing"] or trial["wrong"] for trial in found)
    assert "| finetune | kill | 2 |" in done.stdout


def test_estimates_are_held_against_what_work_took(tiny_folder, forks):
    command = [
        forks.python,
        str(BENCHMARKS / "estimates.py"),
        "--model",
        str(tiny_folder),
        "--steps",
        "2",
        "--rounds",
        "1",
    ]
    command += ["--rows", "16", "--set", "max_length=null"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    kinds = [row[0].strip() for row in table[2:]]
    assert kinds == [
        "align: align sft", "align: align booster", "finetune: finetune antibody", "audit: risk", "evaluate: answer"
    ]  # fmt: skip
    assert all(float(estimate) >= 0 and float(took) >= 0 for *_, estimate, took, _ in table[2:])


def test_a_checkout_gives_the_same_figures_as_itself(tmp_path, forks):
    checkout = str(BENCHMARKS.parent)
    command = [forks.python, str(BENCHMARKS / "same_figures.py"), checkout, checkout, "--only", "align sft"]
    command += ["--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {line["what"] for line in found["lines"]} == {"adapter tensors", "adapter files", "steps of logs"}
    for line in found["lines"]:
        assert line["count"] == line["identical"] > 0
        assert f"| align sft | {line['what']} | {line['count']} | {line['count']} | 0 |" in done.stdout
    assert any("repair safelora" in what for what in found["left_out"])


WEIGHTS = {"a": torch.tensor([0.5, 2.0]), "b": torch.zeros(2, 2)}


def left(folder, jobs, key, weights=WEIGHTS, response="Paris", value=50.0):
    """What a run leaves: one job with an adapter, one answer and one figure. `jobs` and `key` are not compared, nor are times."""
    job = folder / jobs / f"align-{key}"
    (job / "adapter").mkdir(parents=True)
    save_file(weights, job / "adapter" / "adapter_model.safetensors")
    (job / "done.json").write_text(json.dumps({"name": "align sft", "key": key, "seconds": len(key)}))
    answer = {"prompt": "the capital?", "response": response, "model": f"m + align-{key}/adapter"}
    (folder / "inferences.jsonl").write_text(json.dumps(answer) + "\n")
    results = {"results": [{"metric": "harmful_score", "value": value}], "provenance": {"seconds": len(key)}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize(
    ("planted", "what", "largest", "where"),
    [
        ({}, None, 0.0, None),
        ({"weights": WEIGHTS | {"a": torch.tensor([0.5, 2.0 + 2**-22])}}, "adapter tensors", 2**-22, ": a"),
        ({"weights": WEIGHTS | {"b": -torch.zeros(2, 2)}}, "adapter tensors", 0.0, ": b"),  # equal, and other bytes
        ({"weights": WEIGHTS | {"a": torch.tensor([0.5, torch.nan])}}, "adapter tensors", float("inf"), ": a"),
        ({"weights": {"a": WEIGHTS["a"]}}, "adapter tensors", 0.0, ": b (only old)"),
        ({"response": "paris"}, "answers", 0.0, "inferences.jsonl:1"),
        ({"value": 50.25}, "results", 0.25, "results.0"),
    ],
)  # fmt: skip
def test_a_planted_difference_is_found(tmp_path, planted, what, largest, where):
    import same_figures

    old, _ = same_figures.read(left(tmp_path / "old", "stages", "0a"))
    new, _ = same_figures.read(left(tmp_path / "new", "jobs", "0a1b", **planted))
    lines = {kind: same_figures.compare("run", kind, old[kind], new[kind]) for kind in {**old, **new}}
    assert lines.keys() == {"adapter tensors", "adapter files", "answers", "results"}
    differing = {kind for kind, line in lines.items() if line.differing or line.identical != line.count}
    files = {"adapter files"} if "weights" in planted else set()
    assert differing == ({what} | files if what else set())
    if what:
        assert lines[what].largest == largest
        (named,) = lines[what].differing
        assert where in named
        assert "align sft" in named or what != "adapter tensors"  # the job's name, since its key is another


def imports(tree):
    """Yield what a script imports of titer, also inside functions: a module, and a name in it or none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_what_a_script_imports_of_titer_is_there(name):
    tree = ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"))
    for module, wanted in imports(tree):
        if module.split(".")[0] == "titer":
            found = importlib.import_module(module)
            if wanted and not hasattr(found, wanted):
                importlib.import_module(f"{module}.{wanted}")
