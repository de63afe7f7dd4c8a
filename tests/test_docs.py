"""The documentation against the code: snippets run, quoted defaults are the code's, links and commands resolve."""

import ast
import copy
import dataclasses
import importlib
import itertools
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml

from titer.cli import app
from titer.testing import check_attack, check_dataset, check_method

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ["assay.md", "concepts.md", "formats.md", "paper_index.md", "writing_a_method.md"]
NAMES += sorted(str(path.relative_to(DOCS)) for path in DOCS.glob("methods/*.md"))
README = "../README.md"
PAGES = [README, *sorted({*NAMES, *(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))})]
CARDS = [name for name in NAMES if name.startswith("methods/")]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text(name):
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name, *languages):
    """Yield (info string, body) of a page's fenced blocks."""
    for info, body in FENCE.findall(text(name)):
        if info.split()[0] in languages:
            yield info.strip(), body


def sample(name, info):
    """Return the one block of a page with this info string."""
    (body,) = [body for found, body in blocks(name, info.split()[0]) if found == info]
    return body


# --- Python --------------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path, tiny, tiny_folder, tokenizer, helpful_rows, harmful_rows, monkeypatch):
    """A folder with the files that the snippets name."""
    from peft import LoraConfig, get_peft_model

    (tmp_path / "my-model").symlink_to(tiny_folder)
    aligned = get_peft_model(
        copy.deepcopy(tiny), LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    aligned.peft_config["default"].base_model_name_or_path = "my-model"
    aligned.save_pretrained(tmp_path / "aligned")
    for file, rows in {
        "alignment": helpful_rows,
        "helpful": helpful_rows,
        "harmful": harmful_rows,
        "upload": harmful_rows[:2] + helpful_rows[:6],
    }.items():
        lines = [json.dumps({key: row[key] for key in ("prompt", "completion")}) + "\n" for row in rows]
        (tmp_path / f"{file}.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def beside_mine(tmp_path, monkeypatch):
    """The folder of somebody who saved the methods of writing_a_method.md as `mine.py`, as it says."""
    page = [body for info, body in blocks("writing_a_method.md", "python") if info == "python runnable"]
    before_tests = itertools.takewhile(lambda body: "def test_" not in body, page)
    (tmp_path / "mine.py").write_text("\n\n".join(before_tests))
    monkeypatch.chdir(tmp_path)


def test_the_attack_the_data_and_the_repair_of_writing_a_method_keep_their_contracts(beside_mine):
    check_attack("mine.py:SLOW")
    check_dataset("mine.py:requests")
    check_method("mine.py:TOWARDS")


@pytest.mark.parametrize("name", [name for name in NAMES if any("runnable" in i for i, _ in blocks(name, "python"))])
def test_runnable_snippets_run(name, workplace, request):
    """In the order of the page, in one namespace; tests among them are run with this suite's fixtures."""
    module = {"__name__": "snippets"}
    for info, body in blocks(name, "python"):
        if info == "python runnable":
            exec(compile(body, name, "exec", dont_inherit=True), module)
    for function in [value for key, value in module.items() if key.startswith("test_")]:
        wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
        function(**{fixture: request.getfixturevalue(fixture) for fixture in wanted})


@pytest.mark.parametrize("name", [README, *NAMES])
def test_snippets_compile_and_import_what_they_name(name):
    for _, body in blocks(name, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


# --- defaults ------------------------------------------------------------------------------------------------------

TABLE = re.compile(r"^<!-- (defaults|fields): (.*?) -->\n((?:\|.*\n)+)", re.MULTILINE)


def tables(name, kind):
    """Yield (what it describes, whether it must be complete, rows as lists of cells)."""
    for found, spec, body in TABLE.findall(text(name)):
        if found != kind:
            continue
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines()]
        cells = [[cell.strip() for cell in line] for line in lines]
        assert all(len(row) == len(cells[0]) for row in cells), f"{name}: ragged table under `{spec}`"
        yield spec.removesuffix(" own"), spec.endswith(" own"), cells[0], cells[2:]


def resolve(spec):
    module, _, attribute = spec.partition(":")
    return getattr(importlib.import_module(module), attribute)


def inherited(cls):
    """Names of the fields that a class takes over from its parent."""
    parent = cls.__mro__[1]
    return {field.name for field in dataclasses.fields(parent)} if dataclasses.is_dataclass(parent) else set()


def defaults(spec):
    """Return (defaults by name, names that are the class's own)."""
    if spec == "command line":
        from titer import methods

        args = methods.settings(methods.find("align", "sft"), {}, "docs", "unused", 0)
        return {name: getattr(value, "value", value) for name, value in vars(args).items()}, set()
    target = resolve(spec)
    if isinstance(target, dict):
        return target, set(target)
    known = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(target)
    }
    # What must be given has no default to quote, and settings within settings have a table of their own.
    quotable = {
        name
        for name, value in known.items()
        if value is not dataclasses.MISSING and not dataclasses.is_dataclass(value)
    }
    return {name: getattr(value, "value", value) for name, value in known.items()}, quotable - inherited(target)


def unquoted(cell):
    match = re.fullmatch(r"`(.+)`", cell)
    assert match, f"not a quoted value: {cell}"
    return match[1]


def check_defaults(name):
    seen = 0
    for spec, complete, header, rows in tables(name, "defaults"):
        assert header[0] == "setting"
        assert header[1] in ("default", "titer's default")
        known, own = defaults(spec)
        for row in rows:
            setting, quoted = unquoted(row[0]), ast.literal_eval(unquoted(row[1]))
            assert setting in known, f"{name}: `{spec}` has no setting `{setting}`"
            assert known[setting] == quoted, f"{name}: `{setting}` of {spec} is {known[setting]!r}, not {quoted!r}"
            assert type(known[setting]) is type(quoted), f"{name}: `{setting}` is {known[setting]!r}, not {quoted!r}"
            seen += 1
        if complete:
            missing = own - {unquoted(row[0]) for row in rows}
            assert not missing, f"{name}: settings of {spec} without a row: {sorted(missing)}"
    return seen


@pytest.mark.parametrize("name", [*CARDS, "paper_index.md"])
def test_quoted_defaults_are_those_of_the_code(name):
    assert check_defaults(name) >= 2


def test_every_method_has_complete_tables():
    from titer.methods import every

    documented = set()
    for name in [*CARDS, "paper_index.md"]:
        for spec, complete, _, _ in tables(name, "defaults"):
            if complete and ":" in spec and dataclasses.is_dataclass(resolve(spec)):
                documented.add((name == "paper_index.md", resolve(spec)))
    for _, name, method in every():
        assert (DOCS / "methods" / f"{name}.md").is_file()
        assert (False, method.config) in documented, f"no card has all settings of {method.config.__name__}"
        assert name == "sft" or (True, method.config) in documented, f"paper_index lacks {method.config.__name__}"


def test_a_wrong_default_is_found(monkeypatch):
    from titer.methods import align  # noqa: F401  (libraries read files of their own while they are imported)

    wrong = text("methods/booster.md").replace("| `lam` | `5.0` |", "| `lam` | `4.0` |")
    assert wrong != text("methods/booster.md")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: wrong)
    with pytest.raises(AssertionError, match=r"is 5\.0, not 4\.0"):
        check_defaults("methods/booster.md")


# --- formats -------------------------------------------------------------------------------------------------------


def test_sample_rows_are_read(tmp_path):
    from titer.data import read_jsonl

    file = tmp_path / "rows.jsonl"
    file.write_text(sample("formats.md", "jsonl rows"), encoding="utf-8")
    records = read_jsonl(file)
    assert len(records) == 4
    assert records[0] == records[1] == records[2]
    assert records[3].is_harmful


def test_sample_artefacts_are_what_the_code_writes(tmp_path):
    from titer import judges
    from titer import results as ev

    for kind in ("inferences", "scores"):
        (tmp_path / kind).write_text(sample("formats.md", f"jsonl {kind}"), encoding="utf-8")
    (tmp_path / "results").write_text(sample("formats.md", "json results"), encoding="utf-8")
    inferences = ev.read_inferences(tmp_path / "inferences")
    scores = ev.read_scores(tmp_path / "scores")
    assert scores == ev.score(inferences, judges.get("offline"))
    results, _ = ev.read_results(tmp_path / "results")
    assert len(results) == 2
    assert all(result in ev.summarise(inferences, scores) for result in results)


def test_samples_of_labelled_answers_and_error_rates_are_read(tmp_path):
    from titer.data.labelled import PEOPLE, read_labelled
    from titer.judges.error_rates import read_error_rates

    (tmp_path / "answers.jsonl").write_text(sample("formats.md", "jsonl labelled"), encoding="utf-8")
    assert [one.label for one in read_labelled(tmp_path / "answers.jsonl")] == ["compliance", "refusal", "compliance"]
    (tmp_path / "rates.json").write_text(sample("formats.md", "json error_rates"), encoding="utf-8")
    assert list(read_error_rates(tmp_path / "rates.json")) == ["keywords@1"]
    table = text("formats.md").partition("| label | also |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE)
    assert {label: tuple(re.findall(r"`(.+?)`", also)) for label, also in rows} == PEOPLE


def test_the_serving_sample_is_what_the_code_writes(tmp_path):
    from titer.infer.serving import SERVING, read_serving, write_serving

    text_there = sample("formats.md", "json serving")
    (tmp_path / SERVING).write_text(text_there, encoding="utf-8")
    serving = read_serving(tmp_path / "adapter")
    write_serving(tmp_path, serving)
    assert (tmp_path / SERVING).read_text(encoding="utf-8") == text_there
    keys = re.findall(
        r"^\| `(\w+)`", text("formats.md").partition("```json serving")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert keys == list(json.loads(text_there))


def test_field_tables_are_complete():
    seen = 0
    for spec, _, header, rows in tables("formats.md", "fields"):
        assert header[0] == "key"
        names = [field.name for field in dataclasses.fields(resolve(spec))]
        keys = [unquoted(row[0]) for row in rows]
        assert keys == (["id", *names] if "Inference" in spec else names)
        seen += 1
    assert seen == 4


def test_metrics_are_complete():
    from titer.results import METRICS

    rows = re.findall(r"^\| `(\w+)`.*\| (lower|higher) \|$", text("concepts.md"), re.MULTILINE)
    assert dict(rows) == METRICS


def test_provenance_keys(tmp_path):
    from titer.workflows import collecting
    from titer.workflows import experiment as experiments

    plan = experiments.ExperimentPlan(tmp_path, experiment=experiments.read_experiment("quickstart"))
    body = text("formats.md").partition("<!-- provenance -->")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", body, re.MULTILINE) == list(collecting.provenance(plan, "titer run", 1.0))


def test_weight_samples(tmp_path):
    from titer.data import Record
    from titer.methods.finetune.base import read_weight_log
    from titer.workflows import collecting
    from titer.workflows import experiment as experiments

    lines = [json.loads(line) for line in sample("formats.md", "jsonl weights").splitlines()]
    # What the code writes for two rows with these ratios.
    (tmp_path / "log_ratios.json").write_text(json.dumps([line["log_ratio"] for line in lines]))
    records = [Record.make(line["prompt"], "x", origin=line["origin"]) for line in lines]
    about = {key: lines[0][key] for key in ("arm", "seed", "poison_ratio", "when")}
    stage = SimpleNamespace(done=True, folder=tmp_path)
    plan = experiments.ExperimentPlan(
        tmp_path, experiment=experiments.read_experiment("quickstart"), weights=[(stage, about, records)]
    )
    written = [json.loads(line) for line in collecting._weight_lines(plan)]
    assert [{**line, "weight": round(line["weight"], 2)} for line in written] == lines

    (tmp_path / "sample_weights.jsonl").write_text(sample("formats.md", "jsonl sample_weights"))
    assert [line["row"] for line in read_weight_log(tmp_path)] == [4, 17]


def test_audit_sample(workplace, harmful_rows, helpful_rows):
    documented = json.loads(sample("formats.md", "json audit"))
    rows = [{**row, "is_harmful": True} for row in harmful_rows[:3]]
    rows += [{**row, "is_harmful": False} for row in helpful_rows[:3]]
    Path("upload.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from typer.testing import CliRunner

    done = CliRunner().invoke(
        app, ["audit", "upload.jsonl", "--model", "aligned", "--output", "out", "--detector", "none"]
    )
    assert done.exit_code == 0, done.output
    written = json.loads(Path("out/audit.json").read_text())
    assert list(written) == list(documented)
    assert list(written["rows"][0]) == list(documented["rows"][0])
    assert written["schema"] == documented["schema"]
    ratios = [row["log_ratio"] for row in written["rows"]]
    assert ratios == sorted(ratios)


@pytest.mark.parametrize("name", NAMES)
def test_yaml_is_an_experiment(name, tmp_path, beside_mine):
    """A fragment completes with a name; unknown keys, methods and settings are errors."""
    from titer.workflows.experiment import read_experiment

    for info, body in blocks(name, "yaml"):
        if info == "yaml profile":
            continue  # the assay's tests read it
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump({"name": "docs", **yaml.safe_load(body)}, sort_keys=False))
        read_experiment(file)


# --- links ---------------------------------------------------------------------------------------------------------


def anchors(page):
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_resolve(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text(name))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (DOCS / name).parent / path if path else DOCS / name
        assert target.is_file(), f"{name}: {link} does not exist"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link} has no such heading"


# --- commands ------------------------------------------------------------------------------------------------------


def commands(name):
    """Return the `titer …` command lines of a page: those in shell blocks, and those in running text."""
    page = text(name)
    lines = []
    for _, body in blocks(name, "sh", "bash"):
        lines += body.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(titer [^`]+)`", FENCE.sub("", page))
    return [line for line in lines if line.startswith("titer ") and "…" not in line]


def parsed(line):
    """Parse a command line with the real command tree, without running it; returns (verb, its parameters)."""
    _, verb, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    assert verb in group.commands, f"`{line}`: no verb `{verb}`"
    command = group.commands[verb]
    if hasattr(command, "commands"):
        # `titer assay MODEL` is short for `titer assay run MODEL`.
        inner = arguments.pop(0) if arguments and arguments[0] in command.commands else command.default
        command = command.commands[inner]
    return verb, command.make_context(verb, arguments).params


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name, beside_mine):
    from titer import methods
    from titer.jobs import trainings
    from titer.settings import parse_settings
    from titer.workflows.experiment import bundled, read_experiment

    assert commands(name) or name not in (README, "concepts.md", *CARDS)
    for line in commands(name):
        if re.fullmatch(r"titer \w+", line):
            continue  # a verb in running text
        verb, given = parsed(line)
        if verb in methods.STAGES:
            method = methods.find(verb, given["method"])
            methods.settings(method, parse_settings(given["settings"] or ()), "--set", "unused", 0)
            trainings.lora_config(parse_settings(given.get("lora") or ()))
        elif verb == "run":
            file = DOCS.parent / given["experiment"]
            known = file.is_file() or given["experiment"] in bundled()
            if known or name == README:
                read_experiment(file if file.is_file() else given["experiment"], given["settings"] or ())


SKYPILOT = {
    "name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes", "file_mounts", "setup", "run", "config",
}  # fmt: skip
SKYPILOT_RESOURCES = {
    "infra", "accelerators", "accelerator_args", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier",
    "network_tier", "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery",
}  # fmt: skip
"""Keys that SkyPilot documents, https://docs.skypilot.co/en/latest/reference/yaml-spec.html in November 2026."""


def test_the_skypilot_file_has_documented_keys_and_commands_that_there_are():
    task = yaml.safe_load((DOCS.parent / "examples" / "skypilot.yaml").read_text(encoding="utf-8"))
    assert task.keys() <= SKYPILOT
    assert task["resources"].keys() <= SKYPILOT_RESOURCES
    assert isinstance(task["num_nodes"], int)
    assert all(isinstance(value, str) for part in ("envs", "volumes") for value in task[part].values())
    assert (DOCS.parent / task["workdir"] / "constraints.txt").is_file()
    lines = task["run"]
    for name, value in task["envs"].items():
        lines = lines.replace(f"${name}", value)
    given = dict(parsed(line) for line in lines.splitlines() if line.startswith("titer "))
    assert given.keys() == {"run", "status"}
    assert given["run"]["experiment"] == Path("three_arms")
    assert given["run"]["output"] == given["status"]["run"]
    assert any(given["run"]["output"].is_relative_to(place) for place in task["volumes"]), "the folder is shared"


def test_the_commands_inside_of_others_exist():
    """What `ray job submit` runs."""
    found = re.findall(r"^ray job submit .* -- (titer .*)$", text("clusters.md"), re.MULTILINE)
    assert found
    for line in found:
        assert parsed(line)[1]["launcher"] == "ray"


@pytest.mark.parametrize(
    "line",
    [
        "titer immunize x",
        "titer audit upload.jsonl --rank 3",
        "titer align --method sft",
        "titer data a b",
        "titer data export",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises(Exception, match=r"no verb|No such option|Missing|unexpected extra"):
        parsed(line)


def test_pages_name_no_place_of_this_machine():
    for name in PAGES:
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", text(name)), name
