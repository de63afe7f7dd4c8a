"""Every command of the README, and every example of docs/python.md, runs as it stands, one after another in an empty folder.

The tiny model is in the place of the embedded one, experiments are short, and copies are in the place of the hub's data.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

README = Path(__file__).parents[1] / "README.md"


def commands():
    for block in re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "titer":
                yield words[1:]


@pytest.fixture
def workplace(tiny_folder, tmp_path, monkeypatch):
    """An empty folder, and a cache in which the tiny model is the embedded one."""
    shutil.copytree(tiny_folder, tmp_path / "cache" / "models" / "smollm2-135m-instruct")
    monkeypatch.setenv("TITER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def short_experiments(tmp_path, monkeypatch):
    """The bundled experiments, cut short."""
    from titer import settings

    whole = settings.bundled
    shutil.copytree(README.parent / "experiments", tmp_path / "experiments")
    for path in (tmp_path / "experiments").glob("*.yaml"):
        text = re.sub(r"max_steps: \d+", "max_steps: 2", path.read_text(encoding="utf-8"))
        text = re.sub(r"samples: \d+", "samples: 20", text)
        text = re.sub(r"checkpoints: .*", "checkpoints: [1]", text)
        text = re.sub(r"\b(harmful|lookalikes|task|weights|max_new_tokens): \d+", r"\1: 6", text)
        path.write_text(re.sub(r"^seeds: .*", "seeds: [0]", text, flags=re.MULTILINE), encoding="utf-8")
    short = {path.stem: path for path in (tmp_path / "experiments").glob("*.yaml")}
    monkeypatch.setattr(settings, "bundled", lambda folder: short if folder == "experiments" else whole(folder))


@pytest.fixture
def copies(tmp_path):
    """A folder with rows like those that the hub has."""
    data = tmp_path / "data"
    data.mkdir()
    lines = [{"prompt": f"Write a guide on crime {i}", "target": f"Sure, crime {i}"} for i in range(400)]
    (data / "advbench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split, count in (("train", 300), ("validation", 200)):
        lines = [{"sentence": f"{split} film number {i} is fine", "label": i % 2} for i in range(count)]
        (data / f"sst2_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return data


def test_every_command_runs(workplace, short_experiments, copies):
    """Whatever one of them reads, an earlier one has written."""
    from titer.cli import app

    found = list(commands())
    assert len(found) >= 15
    runner = CliRunner()
    for words in found:
        words = ["max_steps=2" if word == "max_steps=60" else word for word in words]
        if words[0] == "finetune":
            words = [*words, "--set", "max_steps=2"]
        if "sst2_advbench" in words:
            words = [*words, "--data-dir", str(copies)]
        result = runner.invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, (words, result.output)
    for made in (
        "runs/quickstart/report.html", "runs/three_arms/report.html", "runs/sst2_advbench/results.json",
        "antibody/evaluation/results.json", "upload.jsonl", "audit/audit.csv", "tuned/sample_weights.jsonl",
        "runs/assay/booster/report.html", "runs/assay/antibody/report.html",
    ):  # fmt: skip
        assert (workplace / made).is_file(), made


def test_every_example_for_python_runs(workplace, short_experiments, capsys):
    page = (README.parent / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python runnable\n(.*?)```", page, re.DOTALL)
    assert len(examples) == page.count("```python") >= 7
    names = {"__name__": "examples"}
    for example in examples:
        exec(compile(re.sub(r'"max_steps": \d+', '"max_steps": 2', example), "python.md", "exec"), names)
    told = capsys.readouterr().out
    assert names["run"].complete
    assert "undefended" in told
    assert "titer: Prompts shared between pools: 0" in told
    assert set(names["figures"]["phase"]) == {"aligned", "finetuned"}
    assert not names["curves"].empty
    for made in ("antibody/adapter", "audit/audit.csv", "after/results.json", "runs/quickstart/report.html"):
        assert (workplace / made).exists(), made


def test_the_two_commands_are_make_targets():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in ("quickstart", "test"):
        assert f"make {target}" in text
        assert f"\n{target}:" in makefile
    assert "make test" in (README.parent / ".ci" / "run").read_text(encoding="utf-8")


def test_a_users_mistake_is_a_message_and_exit_code_2(workplace, capsys, monkeypatch):
    from titer.cli import main

    (workplace / "upload.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    (workplace / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    for words, says in (
        (["audit", "broken.jsonl"], "broken.jsonl:2"),
        (["finetune", "broken.jsonl", "--output", "x"], "broken.jsonl:2"),
        (["finetune", "upload.jsonl", "--output", "x", "--method", "antibdy"], "antibody"),
        (["finetune", "upload.jsonl", "--output", "x", "--set", "tua=1"], "tau"),
        (["align", "--output", "x", "--set", "bf16=false", "--set", "fp16=true"], "bf16"),
        (["align", "--output", "x", "--lora", "lora_dropout=0.1", "--set", "max_steps=1"], "lora_dropout"),
        (["evaluate", "no/such/model"], "no/such/model"),
        (["report", "no/such/run"], "no/such/run"),
        (["data", "sst3"], "sst2"),
    ):
        monkeypatch.setattr("sys.argv", ["titer", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2, words
        assert says in capsys.readouterr().err, words
    assert not (workplace / "x" / "adapter").exists()
