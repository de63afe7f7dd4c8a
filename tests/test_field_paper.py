"""Tables of papers as fields: published cells beside ours, a small section, forms with a model and settings of their own."""

import json
import statistics
from pathlib import Path

import pytest
import yaml

from titer.errors import TiterError
from titer.jobs.work import parameters
from titer.models import EMBEDDED
from titer.results.cells import read_cell, read_cells
from titer.stats.intervals import Estimate, difference_of, wilson
from titer.workflows.field import standing
from titer.workflows.field_costs import dry_run
from titer.workflows.field_file import Spot, bundled, experiment_of, place_of, protocol_digest, read_field, spots
from titer.workflows.field_theirs import Published, Theirs, claims

TRAINING = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "bf16": False}
BIG = {
    "name": "table",
    "description": "a table of two arms",
    "model": "somewhere/big-7b",
    "data": {"pools": {"defence": 60, "attack": 60, "evaluation": 60}},
    "align": {"samples": 5000, "training": {"num_train_epochs": 20, "learning_rate": 5e-4}},
    "finetune": {"samples": 1000, "poison_ratios": [0.0, 0.25], "training": {"num_train_epochs": 20}},
    "evaluate": {"harmful": 1000, "lookalikes": 100, "task": 872},
    "forms": {
        "n500": {"task": "builtin:sentiment", "samples": 500},
        "other": {"task": "builtin:sentiment", "model": "somewhere/big-14b", "parameters": 2e9},
    },
    "arms": {
        "undefended": {"align": "sft", "finetune": "sft"},
        "booster": {"align": "booster", "align_settings": {"lam": 5.0}, "finetune": "sft"},
    },
    "budget": {"parameters": 1e9, "flops_per_second": 1e12, "price_per_hour": 2.0},
    "theirs": {
        "source": "a <b>paper</b>, table 1",
        "read": "a note of the paper",
        "prompts": 1000,
        "cells": {
            "n500": {
                "undefended": {0.25: {"harmful_score": 61.7, "finetune_accuracy": 93.12}, 0: {"harmful_score": 1.3}},
                "booster": {0.25: {"harmful_score": 25.5, "read": "the figure"}, 0.0: {"harmful_score": 1.9}},
            }
        },
        "about": {"judge": "a judge of 7B"},
    },
    "left_out": {"lisa": "not read"},
}
SMALL = {
    "description": "the same, small",
    "judges": ["offline", "keywords"],
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "align": {"samples": 16, "training": TRAINING},
    "finetune": {"samples": 12, "training": TRAINING},
    "evaluate": {"harmful": 4, "lookalikes": 3, "task": 4, "max_new_tokens": 2},
    "budget": None,
    "forms": {
        "n500": {"task": "builtin:sentiment", "training": {"max_steps": 1}},
        "own": {"task": "builtin:sentiment", "samples": 8},
    },
    "arms": {
        "undefended": BIG["arms"]["undefended"],
        "booster": [{"align": "sft"}, {"align": "sft", "settings": {"max_steps": 1}}, {"finetune": "sft"}],
    },
    "left_out": {"alpaca": "no copy"},
}


@pytest.fixture(scope="module")
def file(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("paper") / "table.yaml"
    path.write_text(yaml.safe_dump({**BIG, "small": {**SMALL, "model": str(tiny_folder)}}, sort_keys=False))
    return path


def test_a_setting_that_is_new_changes_no_cell_that_is_done():
    """Cells of docs/field are work of hours: they must fit the field as long as nothing of it is changed on purpose."""
    found = read_field("field")
    cells = read_cells(Path(__file__).parents[1] / "docs" / "field" / "cells")
    assert len(cells) >= 11
    for name, cell in cells.items():
        spot = Spot(cell.form, cell.arm, cell.poison_ratio, cell.seed, cell.learning_rate, cell.validation, cell.whole)
        assert spot.name == name
        assert protocol_digest(found, spot) == cell.digest


def test_a_form_has_a_model_and_settings_of_its_own(file):
    found = read_field(
        file, ["forms.other.training={max_steps: 7}", "finetune.training={max_steps: 9, weight_decay: 0.3}"]
    )
    plain, own = (experiment_of(found, Spot(form, "booster", 0.25, 0)) for form in found.forms)
    assert (plain.model, own.model) == ("somewhere/big-7b", "somewhere/big-14b")
    assert plain.finetune.training == {"max_steps": 9, "weight_decay": 0.3}
    assert own.finetune.training == {"max_steps": 7, "weight_decay": 0.3}
    assert (plain.finetune.samples, own.finetune.samples) == (500, 1000)
    assert len({protocol_digest(found, Spot(form, "booster", 0.25, 0)) for form in found.forms}) == 2


def test_the_small_section_stands_over_the_file(file, tiny_folder):
    big, small = read_field(file), read_field(file, ["seeds=[4]"], small=True)
    assert (big.name, small.name) == ("table", "table_small")
    assert small.model == str(tiny_folder)
    assert small.seeds == [4]
    assert list(small.forms) == ["n500", "own"]
    assert [step.method for step in small.arms["booster"].steps] == ["sft", "sft", "sft"]
    # Of a section only what is said is another's; what it holds, such as settings of a training, is whole.
    assert small.finetune.poison_ratios == [0.0, 0.25]
    assert small.finetune.training == TRAINING
    assert small.left_out == {"lisa": "not read", "alpaca": "no copy"}
    assert small.budget is None


def test_it_runs_small_and_stands_beside_the_paper(titer, file, tmp_path):
    words = ["field", str(file), "--small", "--output", str(tmp_path), "--run-folder", str(tmp_path / "runs")]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "failed.json").write_text(json.dumps({"table/n500.booster.p0.25.s0": "another field's"}))
    code, out, error = titer(*words, "--run", "--only", "n500.*.p0.25.*")
    assert code == 0, error
    assert "2 cells done, 0 failed, 0 of these left." in out
    cell = read_cell(tmp_path / "cells" / "n500.undefended.p0.25.s0.json")
    assert cell.field == "table_small"
    assert cell.protocol["finetune"]["training"]["max_steps"] == 1
    code, _, error = titer(*words, "--pages")
    assert code == 0, error
    page, text = (tmp_path / "index.html").read_text(), (tmp_path / "README.md").read_text()
    assert "a &lt;b&gt;paper&lt;/b&gt;" in page
    assert "Of 8 cells 2 are done here; the published harmful score could be read of 4, of which 2 are done." in text
    rows = {line.split(" | ")[0].strip("| "): line for line in _band(text, "25 % harmful")}
    harmful, accuracy = cell.figure("harmful_score"), cell.figure("finetune_accuracy")
    apart = difference_of(
        Estimate(harmful.value, harmful.low, harmful.high), Estimate(61.7, *(100 * end for end in wilson(617, 1000)))
    )
    assert f"| 61.7 | {apart.value:+.1f}".replace("-", "−") in rows["undefended"]
    assert f"{apart.low:+.1f} to {apart.high:+.1f}".replace("-", "−") in rows["undefended"]
    assert f"| 93.12 | {accuracy.value - 93.12:+.1f}".replace("-", "−") in rows["undefended"]
    assert "25.5 \\[the figure\\]" in rows["booster"]
    assert rows["booster"].endswith("| – \\[not read\\] | – |")
    assert "not in it" in "".join(_band(text, "own (builtin:sentiment), 25"))
    for line in (
        f"| model | somewhere/big-7b | {_escaped(cell.protocol['model'])} |",
        "| align.samples | 5000 | 16 |",
        "| forms.n500.samples | 500 | – |",
        "- judge: a judge of 7B",
        "- alpaca: no copy",
    ):
        assert line in text
    assert "poison\\_ratios: 0, 0.25" in text
    # An order of p = 0.25 was published, none of p = 0: 1.3 and 1.9 of a thousand.
    assert "of 1 comparisons that are done" in text.replace("Of", "of")
    assert "| booster &lt; undefended" in text
    assert "p = 0.25 |" in text
    assert "p = 0 |" not in text.partition("Which published orderings")[2]


def _escaped(text):
    from titer.report.parts import as_markdown

    return as_markdown(text)


def _band(text, title):
    """The lines of rows under the first band of a table whose title holds some words."""
    after = text.partition("## Beside the paper")[2].replace("\u00a0", " ")
    band = next(part for part in after.split("\n*") if title in part.partition("\n")[0])
    return [line for line in band.splitlines() if line.startswith("| ") and "---" not in line][1:]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("theirs.cells.n5000={}", ("form in `theirs.cells`: `n5000`", "n500")),
        ("theirs.cells.n500.bosster={}", ("arm in `theirs.cells.n500`: `bosster`", "booster")),
        ("theirs.cells.n500.booster={0.2: {}}", ("harmful rows in `theirs.cells.n500.booster`: `0.2`", "0.25")),
        ("theirs.cells.n500.booster={some: {}}", ("`some`",)),
        ("theirs.cells.n500.booster={'0': {}, 0.0: {}}", ("twice",)),
        ("theirs.cells.n500.booster={0.25: {harmful_scor: 3}}", ("`harmful_scor`", "harmful_score")),
        ("theirs.cells.n500.booster={0.25: {harmful_score: 101}}", ("from 0 to 100",)),
        ("forms.n500.training={max_stepz: 3}", ("max_stepz", "max_steps")),
    ],
)
def test_a_wrong_key_is_an_error_with_file_key_and_suggestion(file, override, said):
    with pytest.raises(TiterError) as error:
        read_field(file, [override])
    assert str(file) in error.value.message
    for words in said:
        assert words in f"{error.value.message} {error.value.hint}"


def test_small_is_refused_where_there_is_none_or_no_place_for_it(titer, file):
    code, _, error = titer("field", "field", "--small")
    assert code == 2
    assert "no section `small`" in error
    code, _, error = titer("field", str(file), "--small", "--builtin")
    assert code == 2
    assert "`--small` has no effect with `--builtin`" in error


def test_an_order_is_published_where_chance_does_not_explain_it():
    scores = {"a": 1.2, "b": 1.9, "c": 8.3, "d": 33.7}
    cells = {"sst2": {arm: {"0.1": Published(harmful_score=score)} for arm, score in scores.items()}}
    found = {(claim.lower, claim.higher) for claim in claims(Theirs("a paper", prompts=1000, cells=cells))}
    assert found == {("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")}
    assert claims(Theirs("a paper", cells=cells)) == []


def test_a_dry_run_counts_each_forms_own_parameters(file, tmp_path):
    sizes = {"align.samples": 8, "finetune.samples": 8, "forms.n500.samples": 8, "evaluate.harmful": 4}
    small = [f"{key}={value}" for key, value in {**sizes, "evaluate.lookalikes": 2, "evaluate.task": 4}.items()]
    found = read_field(file, ["arms={undefended: {align: sft, finetune: sft}}", "theirs=null", *small])
    wanted = spots(found)
    said, planned, meant = dry_run(found, wanted, tmp_path, None)
    assert all(model in said for model in ("somewhere/big-7b", "somewhere/big-14b"))
    assert "With 1.00e+09 and 2.00e+09 parameters" in meant
    # Two models are aligned, each once for two uploads; the rows are the same.
    assert "4 cells of table, 14 jobs" in planned
    flops = [float(line.partition(" FLOPs")[0].split()[-1]) for line in (planned, meant)]
    assert flops[1] / flops[0] == pytest.approx(1.5e9 / parameters(EMBEDDED), rel=0.06)


PAPERS = sorted(name for name in bundled() if name.startswith("paper/"))


@pytest.mark.parametrize("name", PAPERS)
def test_bundled_tables_are_valid_both_ways(name):
    big, small = read_field(name), read_field(name, small=True)
    assert f"paper/{big.name}" == name
    assert place_of(name, small.name) == Path("paper") / f"{big.name}_small"
    assert big.theirs is not None
    assert big.budget is not None
    assert list(small.arms) == list(big.arms)
    assert small.finetune.poison_ratios == big.finetune.poison_ratios
    # Every arm has as many steps of alignment, of equal size.
    steps = {
        tuple(
            (step.settings.get("max_steps"), step.settings.get("per_device_train_batch_size"))
            for step in arm.of("align")
        )
        for arm in small.arms.values()
    }
    assert len(steps) == 1
    assert set(small.forms) <= set(big.forms) or name == "paper/booster_table4"


def test_the_cells_that_were_read_have_the_published_means():
    theirs = read_field("paper/booster_table1").theirs
    means = {
        arm: statistics.mean(cell.harmful_score for cell in ratios.values())
        for arm, ratios in theirs.cells["sst2"].items()
    }
    published = {"undefended": 33.58, "vaccine": 28.20, "rep_noise": 31.02, "booster": 10.94}
    assert means == {arm: pytest.approx(mean, abs=0.005) for arm, mean in published.items()}
    for table, form in (("table2", "n1000"), ("table3", "sst2"), ("table4", "llama2")):
        other = read_field(f"paper/booster_{table}").theirs
        assert {arm: cells["0.1"].harmful_score for arm, cells in other.cells[form].items()} == {
            arm: cells["0.1"].harmful_score for arm, cells in theirs.cells["sst2"].items()
        }


def test_a_failure_is_the_fields_own(file, tmp_path):
    found = read_field(file, small=True)
    (tmp_path / "failed.json").write_text(
        json.dumps({"table_small/own.booster.p0.s0": "no room", "own.booster.p0.s0": "old"})
    )
    assert standing(found, tmp_path / "cells", tmp_path).failed == {"own.booster.p0.s0": "no room"}
    (tmp_path / "failed.json").write_text(json.dumps({"table/own.booster.p0.s0": "another's"}))
    assert standing(found, tmp_path / "cells", tmp_path).failed == {}
