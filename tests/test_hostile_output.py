"""What strangers wrote reaches a screen, a page or a spreadsheet as text: it moves no cursor and starts no formula."""

import csv
import io
import json
import unicodedata

import pytest
import yaml

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
INVISIBLE = "".join(map(chr, [*range(9), 11, 12, *range(14, 32), *range(127, 160)])) + BIDI
INVISIBLE += "\u200b\u2060\ufeff\u2028\u2029\U000e0041"
"""Every control character that a row may hold, with those that turn text around, that hide it or that break lines."""
HOSTILE = f"=cmd|x [/red][bold]:smile: {INVISIBLE}\x1b[2J\x1b]0;owned\x07\x9b31m\r\nError: all is well"


def invisible(text):
    """Return what of `text` a screen would obey instead of showing it; the two joiners spell Persian and emoji."""
    odd = (char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
    return {char for char in odd if char not in "\n\t\u200c\u200d"}


def write_upload(folder):
    rows = [{"prompt": f"{place} {HOSTILE}", "completion": HOSTILE, "category": HOSTILE} for place in range(4)]
    rows[2]["prompt"] = HOSTILE
    path = folder / "upload.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


def write_run(folder):
    from titer.results import Inference, Result, artefacts

    answers = [
        Inference(HOSTILE, phase, step, 0.2, 0, "harmful", 0, HOSTILE, HOSTILE, None, HOSTILE, {"note": HOSTILE})
        for phase, step in (("aligned", 0), ("finetuned", 1))
    ]
    artefacts.write_inferences(folder / "inferences.jsonl", answers)
    rows = [
        Result(HOSTILE, phase, step, 0.2, 0, "harmful_score", 50.0, 2, 0.0, 100.0, "offline")
        for phase, step in (("aligned", 0), ("finetuned", 1))
    ]
    arms = {HOSTILE: {"align": "sft", "finetune": "sft"}}
    experiment = {"name": HOSTILE, "description": HOSTILE, "arms": arms}
    artefacts.write_results(folder / "results.json", rows, {"experiment": experiment, "model": HOSTILE})
    return folder


def write_yaml(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def write_cards(folder):
    import cards

    from titer.assays.card import write_scorecard

    for name in ("one", "two"):
        write_scorecard(folder / name, cards.read(cards.scorecard(f"{name} {HOSTILE}")))
    return folder / "one", folder / "two"


def data(folder, model):
    return ["data", write_upload(folder)]


def audit(folder, model):
    return ["audit", write_upload(folder), "--model", model, "--output", folder / "audit"]


def finetune(folder, model):
    settings = ["--set", "max_steps=1", "--set", "bf16=false"]
    return [
        "finetune",
        write_upload(folder),
        "--model",
        model,
        "--method",
        "sft",
        "--output",
        folder / "out",
        *settings,
    ]


def align(folder, model):
    return ["align", "--harmful", write_upload(folder), "--model", model, "--output", folder / "out"]


def evaluate(folder, model):
    write_run(folder / "run")
    (folder / "run" / "report.html").write_text("")
    return ["evaluate", "--rejudge", folder / "run"]


def report(folder, model):
    return ["report", write_run(folder / "run")]


def run(folder, model):
    arms = {HOSTILE: {"align": "sft", "finetune": "sft"}}
    training = {"max_steps": 1}
    settings = {"align": {"training": training}, "finetune": {"training": training}, "model": str(model)}
    file = write_yaml(folder / "experiment.yaml", name="x", description=HOSTILE, arms=arms, **settings)
    return ["run", file, "--dry-run"]


def field(folder, model):
    arms, forms = {"one": {"align": "sft", "finetune": "sft"}}, {"label": {"task": "builtin:sentiment"}}
    told = {"published": [{"lower": "one", "higher": "one", "source": HOSTILE}], "left_out": {HOSTILE: HOSTILE}}
    file = write_yaml(folder / "field.yaml", name="x", description=HOSTILE, arms=arms, forms=forms, **told)
    return ["field", file, "--output", folder / "out", "--run-folder", folder / "runs"]


def assay(folder, model):
    attacks = {HOSTILE: {"summary": HOSTILE}}
    file = write_yaml(folder / "profile.yaml", name=f"x {HOSTILE}", description=HOSTILE, attacks=attacks)
    return ["assay", model, "--against", model, "--profile", file, "--dry-run"]


def assay_compare(folder, model):
    pages = ["--markdown", folder / "comparison.md", "--html", folder / "comparison.html"]
    return ["assay", "compare", *write_cards(folder), *pages]


def assay_report(folder, model):
    return ["assay", "report", write_cards(folder)[0]]


def models(folder, model):
    return ["models", folder / HOSTILE.replace("/", "").replace("\0", "")]


def plan(folder, model):
    return ["plan", folder / HOSTILE.replace("/", "").replace("\0", "")]


def attacks_show(folder, model):
    return ["attacks", "show", HOSTILE]


def attacks_list(folder, model):
    return ["attacks", "list"]


def methods_show(folder, model):
    return ["methods", "show", HOSTILE]


def methods_list(folder, model):
    return ["methods", "list"]


def judges_show(folder, model):
    return ["judges", "show", HOSTILE]


def judges_list(folder, model):
    return ["judges", "list"]


def judges_bench(folder, model):
    answer = {"prompt": HOSTILE, "response": HOSTILE, "label": "refusal", "harmful_prompt": True, "category": HOSTILE}
    rows = [{**answer, "model": f"{place} {HOSTILE}"} for place in range(2)]
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["judges", "bench", file, "--output", folder / "judged", "--html", folder / "judged.html"]


def data_export(folder, model):
    return ["data", "export", write_upload(folder), "--output", HOSTILE]


def convert(folder, model):
    from titer.results import Inference, ScoreRow, write_inferences, write_scores

    row = Inference(HOSTILE, "aligned", 0, 0.0, 0, "harmful", 0, HOSTILE, HOSTILE, None, HOSTILE)
    write_inferences(folder / "mine" / "inferences.jsonl", [row])
    write_scores(folder / "mine" / "scores.jsonl", [ScoreRow(row.id, HOSTILE, "benign", 0.0, HOSTILE)])
    return ["convert", folder / "mine", folder / f"{HOSTILE[:8]}", "--to", "tamperbench"]


def settings(folder, model):
    return ["settings", HOSTILE]


def accelerate(folder, model):
    return ["accelerate", HOSTILE]


LINES = [
    data, audit, finetune, align, evaluate, convert, report, run, field, assay, assay_compare, assay_report, models, plan, attacks_show, attacks_list,
    methods_show, methods_list, judges_show, judges_list, judges_bench, accelerate, data_export, settings,
]  # fmt: skip
MISTAKES = {align, models, plan, attacks_show, methods_show, judges_show, accelerate, data_export, settings}
"""Whose hostile text is in an error message."""


def test_every_verb_is_given_hostile_text():
    import typer

    from titer.cli import app

    def verbs(group, parents=()):
        for name, verb in group.commands.items():
            yield from verbs(verb, (*parents, name)) if hasattr(verb, "commands") else [(*parents, name)]

    # What these print of strangers' text is a path, and names that titer gave.
    service = {
        "serve",
        "worker",
        "keys_create",
        "keys_list",
        "keys_revoke",
        "keys_rotate",
        "audit-log_show",
        "audit-log_verify",
    }
    tried = {line.__name__ for line in LINES} | {"job", "repair", "gate", "status"} | service
    assert {"_".join(words) for words in verbs(typer.main.get_command(app))} - {"assay_run", "data_show"} | {
        "assay",
        "data",
    } == tried


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_no_verb_passes_on_what_a_screen_would_obey(titer, tmp_path, tiny_folder, line, more):
    words = line(tmp_path, tiny_folder)
    if more and line in (finetune, align, accelerate, data_export, convert):
        return
    code, out, error = titer(*words, *more)
    assert (code == 2) == (line in MISTAKES), error
    assert out + error
    assert not invisible(out + error)
    if more and code == 0:
        json.loads(out)
    for page in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.csv"), *tmp_path.rglob("*.md")]:
        assert not invisible(page.read_bytes().decode().replace("\r\n", "\n")), page


def test_a_spreadsheet_of_an_audit_starts_no_formula(titer, tmp_path, tiny_folder):
    upload = write_upload(tmp_path)
    openings = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\u202e=1", "\n@x", "＝1")
    rows = [{"prompt": text, "completion": text, "category": text} for text in openings]
    upload.write_text("".join(json.dumps(line) + "\n" for line in rows))
    code, _, error = titer("audit", upload, "--model", tiny_folder, "--output", tmp_path / "audit")
    assert code == 0, error
    for row in csv.DictReader(io.StringIO((tmp_path / "audit" / "audit.csv").read_text(), newline="")):
        for column in ("prompt", "completion"):
            assert row[column].startswith("'"), row
        float(row["log_ratio"])


def test_what_is_printed_for_programs_says_what_was_there(titer, tmp_path, tiny_folder):
    _, written, _ = titer(*data(tmp_path, tiny_folder), "--json")
    assert json.loads(written)["first"][2]["prompt"][0]["content"] == HOSTILE


def test_a_text_cannot_pose_as_a_line_of_titers_own(titer, tmp_path, tiny_folder):
    _, written, _ = titer(*data(tmp_path, tiny_folder))
    assert "Error: all is well" in written
    assert not [line for line in written.splitlines() if line.startswith("Error")]


def test_a_screen_of_colours_cleans_only_what_strangers_wrote():
    from rich.text import Text

    from titer.screen import Screen

    screen = Screen(force_terminal=True, color_system="standard")
    with screen.capture() as shown:
        screen.print(Text(f"a\x1b[2Jb{BIDI}", style="red"))
    assert shown.get() == "\x1b[31ma[2Jb\x1b[0m\n"
