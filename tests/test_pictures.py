"""The papers' pictures: what is measured, against longhand, and the page on what a toy and planted figures give."""

import json
import math

import pictures
import pictures_page
import pytest
import torch
from cards import read, scorecard

from titer.assays.card import write_scorecard
from titer.errors import TiterError
from titer.models import Template
from titer.testing import toy_lora, toy_rows


@pytest.fixture
def adapted(tiny, tiny_folder, tokenizer, tmp_path):
    """Folders of two adapters on the tiny model."""
    from peft import get_peft_model

    for seed, name in enumerate(("plain", "flat")):
        torch.manual_seed(seed)
        model = get_peft_model(tiny, toy_lora())
        model.peft_config["default"].base_model_name_or_path = str(tiny_folder)
        model.save_pretrained(tmp_path / name / "adapter")
        tiny = model.unload()
    return {name: tmp_path / name for name in ("plain", "flat")}


def test_a_rows_gradient_norm_is_that_of_autograd_on_its_mean_loss(tiny, tokenizer):
    from peft import get_peft_model

    from titer.data import Record

    model = get_peft_model(tiny, toy_lora()).double().eval()
    pairs = [Template(tokenizer).pair_ids(Record.from_row(row)) for row in toy_rows(5)]
    found = pictures.gradient_norms(model, pairs)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for (prompt, answer), (norm, loss) in zip(pairs, found, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
        wanted = -torch.stack([logits[place].log_softmax(-1)[token] for place, token in enumerate(answer)]).mean()
        squares = sum((gradient**2).sum() for gradient in torch.autograd.grad(wanted, weights))
        assert loss == pytest.approx(wanted.item(), rel=1e-10)
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-10)
    assert len({norm for norm, _ in found}) == len(found)


def test_models_are_measured_once_and_drawn(adapted, tmp_path, monkeypatch, capsys):
    output = tmp_path / "pictures"
    mark = "flat <script>alert(1)</script>"
    both = [f"plain={adapted['plain']}", f"{mark}={adapted['flat']}"]
    one, common = both[:1], ["--output", str(output)]
    work = ["--work", str(tmp_path / "work"), "--samples", "20"]
    runs = [
        ["norms", *both, *common, "--rows", "3"],
        ["ratios", *one, *common, *work, "--harm", "seen,alike", "--set", "tau=10", "--set", "max_steps=1"],
        ["rates", *one, *common, *work, "--rates", "1e-3", "--epochs", "1", "2", "--batch", "10", "--prompts", "3", "--tokens", "3"],
    ]  # fmt: skip
    for words in runs:
        pictures.main(words)
    files = {path.name: path.read_text() for path in output.iterdir()}
    assert len(files) == 4
    assert not any(str(tmp_path) in text for text in files.values()), "a folder of this machine is in a file"
    found = {name.split(".")[0]: json.loads(text) for name, text in sorted(files.items(), reverse=True)}
    rows = {kind: len(values["norm"]) for kind, values in found["norms"]["found"].items()}
    assert rows == {"benign": 3, "seen": 3, "alike": 3}
    assert sum(found["ratios"]["found"]["seen"]["harmful"]) == 4
    assert list(found["rates"]["found"]) == ["0", "0.001 2", "0.001 4"]

    # Again, after a checkpoint's score was lost: nothing is trained or loaded but that checkpoint.
    del found["rates"]["found"]["0.001 4"]
    kept = next(output.glob("rates.*"))
    kept.write_text(json.dumps(found["rates"]))
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "load_model", lambda *words: pytest.fail("a model was loaded"))
        for words in runs:
            pictures.main(words)
    assert json.loads(kept.read_text())["found"] == json.loads(files[kept.name])["found"]
    with pytest.raises(TiterError, match="other settings or another model"):
        pictures.main([*runs[0], "--seed", "1"])

    capsys.readouterr()
    pictures.main(["page", *common])
    page = (output / "index.html").read_text()
    assert "<script" not in page
    assert "alert(1)" in page
    assert page.count('<svg class="plot"') == 3 + 2 * 4 + 1
    assert found["ratios"]["command"] in (output / "README.md").read_text().replace("\\", "")


def document(picture, place, name, found, **settings):
    about = {"group": "g", "place": place, "name": name, "note": "", "command": "c", "commit": "abc"}
    return {"picture": picture, **about, "settings": {"seed": 0, **settings}, "found": found}


def words_of(parts):
    return " ".join(part if isinstance(part, str) else repr(part) for part in parts)


def test_pages_say_what_was_planted():
    """Half the norm on the same rows, harmful rows whose ratios are all lower, a drop that is two thirds."""
    norms = [
        {
            kind: {"norm": [scale * value for value in (1.0, 3.0, 7.0)], "loss": [1.0] * 3}
            for kind in ("benign", "other")
        }
        for scale in (1.0, 0.5)
    ]
    plain, flat = (document("norms", i - 1, name, norms[i], rows=3, rows_digest="d") for i, name in enumerate("pf"))
    assert "f, harmful rows of another corpus: smaller, × 0.50 [0.50–0.50] the norm of p" in words_of(
        pictures_page.norms("g", [plain, flat])
    )
    with pytest.raises(TiterError, match="different rows"):
        pictures_page.norms("g", [plain, {**flat, "settings": {**flat["settings"], "rows_digest": "e"}}])

    values = {"sum": [-9.0, 1.0, -8.0, 2.0], "calibrated": [1.0, 0.0, 2.0, -1.0]}
    found = {"seen": {"harmful": [True, False, True, False], "before": values, "after": values}}
    table = words_of(pictures_page.ratios("g", [document("ratios", 0, "p", found, method="antibody", set=[])]))
    assert "text='1.00'" in table  # `sum` orders them, `calibrated` the other way round
    assert "text='0.00'" in table

    lines = [
        [{"step": step, "loss": 1.0, "harmful_loss": 3.0, "drop": drop} for step in range(1, 100)]
        for drop in (0.3, 0.2)
    ]
    both = [document("objective", i, name, line) for i, (name, line) in enumerate(zip("pb", lines, strict=True))]
    assert (
        "b: at the end the drop is × 0.67 that of p (the first here, and no control), and h(w) 3.00 against 3.00"
        in words_of(pictures_page.objective("g", both))
    )


def test_an_objective_is_read_where_an_attack_was_simulated(tmp_path):
    lines = [
        {"step": step, "loss": 2.0} | ({"harmful_loss": 3.0, "sharpness": 0.1} if step % 4 == 1 else {})
        for step in range(1, 9)
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["step"] for line in pictures.objective_of(log)] == [1, 5]
    assert pictures.objective_of(log)[0]["drop"] == 0.1
    log.write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(TiterError, match="no simulated attack") as refused:
        pictures.objective_of(log)
    assert "lam=0" in refused.value.hint


def test_an_assay_is_drawn_with_its_threshold(tmp_path):
    card = read(scorecard("defended"))
    write_scorecard(tmp_path / "assay", card)
    output = ["--output", str(tmp_path / "pictures")]
    pictures.main(["attack", f"two={tmp_path / 'assay'}", *output, "--only", "full_parameter"])
    pictures.main(["page", *output])
    readme = (tmp_path / "pictures" / "README.md").read_text()
    (line,) = [line for line in readme.splitlines() if line.startswith("| full")]
    steps = [
        next(point.step for point in t.answered if point.step and point.harmful > card.resistance.phi)
        for role in ("defended", "undefended")
        for t in card.attackers[role]
        if t.attack == "full_parameter"
    ]
    assert steps[0] > steps[1]
    assert "Of 1 attacks the defended model was above it at a later look in 1, at a sooner one in 0." in readme
    assert [f"above φ at step {step};" in cell for step, cell in zip(steps, line.split("|")[2:4], strict=True)] == [
        True
    ] * 2
    with pytest.raises(TiterError, match="no such harmful attack"):
        pictures.main(["attack", f"three={tmp_path / 'assay'}", *output, "--only", "none"])
