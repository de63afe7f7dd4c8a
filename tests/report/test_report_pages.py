"""Every kind of page on a telephone and on a desk: nothing runs out of the page, no text is cut off, labels can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cards
import pytest
from test_report_html import Page, assert_self_contained, audit_rows

from titer.data.labelled import LabelledAnswer
from titer.errors import TiterError
from titer.judges import ErrorRates, Verdict
from titer.judges.bench import Bench, bench
from titer.report import (
    Drawing,
    Section,
    Table,
    drawing,
    write_assay_report,
    write_audit,
    write_bench,
    write_comparison,
    write_report,
)
from titer.report.parts import rate_cell
from titer.results.summary import Run
from titer.stats.intervals import Estimate
from titer.stats.misclassification import Counted

PAGES = (
    "run",
    "many arms",
    "evaluation",
    "assay",
    "empty assay",
    "audit",
    "audit without labels",
    "audit by a detector",
    "comparison",
    "own sections",
    "judges against people",
    "corrected",
)
WIDTHS = (390, 1280)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SMALLEST = 10.0  # pixels of a label
PHONE = 390 - 2 * 14 - 2 * 13  # of a figure on a phone: the page's margins, the figure's border and padding
# A window has a least width of its own (500 px in Chromium); a frame has none, and media queries go by the frame.
MEASURE = """
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement, width = root.clientWidth;
    page.querySelectorAll("details").forEach(part => { part.open = true; });
    const box = part => {
      for (let up = part.parentElement; up && up !== page.body; up = up.parentElement)
        if (view.getComputedStyle(up).overflowX !== "visible") return up;
      return root;
    };
    const words = part => `${part.tagName.toLowerCase()}: ${part.textContent.trim().slice(0, 60)}`;
    const right = part => part.getBoundingClientRect().right;
    const out = [...page.body.querySelectorAll("*")].filter(part => box(part) === root && right(part) > width + 1);
    const prose = [...page.querySelectorAll("caption, p, figcaption, li, dt, dd, h1, h2, h3, h4, summary, .text")];
    const cut = prose.filter(part => right(part) > right(box(part)) + 1);
    const labels = [...page.querySelectorAll("svg text")].map(text => {
      const matrix = text.getScreenCTM();
      return parseFloat(view.getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
    });
    return {width, scroll: root.scrollWidth, out: out.map(words), cut: cut.map(words), label: Math.min(99, ...labels)};
  });
  document.body.innerHTML = "";
  document.body.append(JSON.stringify(found));
};
"""


def own_section(run: Run, folder: Path) -> Section:
    """One with everything that a section may hold, and words that no window is wide enough for."""
    points = run.course("undefended", "harmful_score", 0.2)
    figure, axes = drawing.panel("Harmful score, %")
    drawing.course(axes, 0, points)
    rows = [(f"step {step}", rate_cell(rate, with_n=True), "a_long_word" * 12) for step, rate in points]
    plot = Drawing(drawing.svg(figure, "Harmful score by step.", "own"), "What it shows.")
    return Section(
        "Of one's own", ["A paragraph. " * 20, Table.of(("Step", "HS", "Words"), rows, caption="c " * 90), plot]
    )


NASTY = (
    "<script>alert(1)</script>",
    '"><img src="http://evil.example/x.png" onerror=alert(2)>',
    "word " * 900,
    "",
    "\u202eesrever \ud83d",
)
BENCHED = {
    "answers": {"answers_of_a_file_with_a_long_name.jsonl": "0123456789abcdef"},
    "titer": "0.1.0",
    "command": "titer judges bench a.jsonl",
}


def judges_against_people() -> Bench:
    """Two judges, one with a long name, on answers with everything that a row may hold."""
    answers, verdicts = [], {"keywords@1": [], "mine@1 url=http://a.very.long.name.example:8000/v1 model=x": []}
    for place in range(60):
        people = ("compliance", "refusal", "partial", "unsure")[place % 4 if place % 10 else 0]
        response = NASTY[place % len(NASTY)]
        model, category = f"a-model-with-a-long-name-{place % 3}", f"a category of prompts {place % 2}"
        harmful = (True, False, None)[place % 3]
        answers.append(LabelledAnswer(f"Question {place // 2} {NASTY[0]}", response, people, harmful, model, category))
        for shift, given in enumerate(verdicts.values()):
            label = ("harmful", "refused", "benign", "unsure")[(place // 3 + shift) % 4]
            failed = Verdict(None, None, "", error="down")
            given.append(failed if place == 7 else Verdict(label, (place % 11) / 10, f"{NASTY[1]} {'raw ' * 200}"))
    return bench(answers, verdicts)


def corrected(results: dict[str, Any]) -> dict[str, Any]:
    """A run's results whose judge is known to err."""
    entry = ErrorRates(Counted(45, 50), Counted(15, 100), "made up", ("m",), 60, "2026-01-01", "none")
    more = []
    for row in results["results"]:
        if row["metric"] == "harmful_score":
            found = entry.true_share(round(row["value"] * row["n"] / 100), row["n"]).estimate
            if found is not None:
                value, low, high = (100 * one for one in found)
                more.append({**row, "metric": "harmful_score_corrected", "value": value, "low": low, "high": high})
    provenance = {**results["provenance"], "error_rates": {"offline@2": entry.as_dict()}}
    return {**results, "results": results["results"] + more, "provenance": provenance}


@pytest.fixture(scope="module")
def pages(complete_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each kind of page."""
    folder = tmp_path_factory.mktemp("pages")
    results = json.loads((complete_run / "results.json").read_text())
    rows = results["results"]
    many = [
        {**row, "arm": f"a_variant_with_a_long_name_{n}"} for n in range(4) for row in rows if row["arm"] == "booster"
    ]
    alone = [row for row in rows if (row["arm"], row["phase"], row["seed"]) == ("booster", "aligned", 0)]
    written = {"run": complete_run / "report.html"}
    for name, kept, provenance in (
        ("many arms", rows + many, results["provenance"]),
        ("evaluation", alone, {"model": "m", "judge": "offline@2"}),
    ):
        run = folder / name
        run.mkdir()
        (run / "results.json").write_text(json.dumps({**results, "results": kept, "provenance": provenance}))
        written[name] = write_report(run)
    for name, card in (
        ("assay", cards.scorecard()),
        ("empty assay", cards.empty_scorecard()),
    ):
        (folder / name).mkdir()
        written[name] = write_assay_report(folder / name, cards.read(card))
    about = {"dataset": "a/folder/with_a_long_name/of_a_customer_who_uploads.jsonl", "model": "m"}
    for name, labelled in (("audit", True), ("audit without labels", False)):
        written[name] = write_audit(folder / f"{name}.html", audit_rows(labelled), about)
    rows = [
        {**row, "p_harmful": 0.5, "reason": "like: requests for cybercrime; it complies"} for row in audit_rows(False)
    ]
    share = Estimate(0.2, 0.1, 0.3)
    alarms = about | {"false_alarms": {"value": 0.01, "low": 0.0, "high": 0.03}}
    written["audit by a detector"] = write_audit(folder / "detector.html", rows, alarms, "poisoned", share)
    several = [cards.read(card) for card in (cards.scorecard(), cards.scorecard("b"), cards.unbroken_scorecard())]
    written["comparison"] = write_comparison(folder / "comparison.html", several)
    (folder / "own sections").mkdir()
    shutil.copy(complete_run / "results.json", folder / "own sections")
    written["own sections"] = write_report(folder / "own sections", [own_section])
    written["judges against people"] = write_bench(folder / "bench.html", judges_against_people(), BENCHED)
    (folder / "corrected").mkdir()
    (folder / "corrected" / "results.json").write_text(json.dumps(corrected(results)))
    written["corrected"] = write_report(folder / "corrected")
    assert tuple(written) == PAGES
    return {name: path.read_text(encoding="utf-8") for name, path in written.items()}


@pytest.fixture(scope="module")
def measured(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict]:
    """What a browser makes of each page at each width; one start of the browser for all of them."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("browser")
    keys = [(name, width) for width in WIDTHS for name in PAGES]
    frames = "".join(
        f'<iframe style="width: {width}px; border: 0" srcdoc="{html.escape(pages[name])}"></iframe>'
        for name, width in keys
    )
    host = folder / "host.html"
    host.write_text(f"<!doctype html><meta charset='utf-8'>{frames}<script>{MEASURE}</script>", encoding="utf-8")
    options = [
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run([CHROMIUM, *options, host.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(re.search(r"<body>(\[.*\])", done.stdout, flags=re.DOTALL)[1]))
    return dict(zip(keys, found, strict=True))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_cuts_nothing_off(measured, name, width):
    found = measured[name, width]
    assert found["width"] == width
    assert found["scroll"] <= width, found["out"][:5]
    assert not found["out"]
    assert not found["cut"]
    assert found["label"] >= SMALLEST


@pytest.mark.parametrize("name", PAGES)
def test_labels_of_figures_can_be_read_on_a_phone(pages, name):
    plots = re.findall(r'<svg class="plot" viewBox="0 0 ([\d.]+) [\d.]+".*?</svg>', pages[name], flags=re.DOTALL)
    drawings = re.findall(r'<svg class="plot".*?</svg>', pages[name], flags=re.DOTALL)
    assert len(plots) == len(drawings)
    for width, plot in zip(plots, drawings, strict=True):
        sizes = [float(size) for size in re.findall(r"font(?:-size)?:[^;\"]*?([\d.]+)px", plot)]
        assert sizes
        assert min(sizes) * PHONE / float(width) >= SMALLEST


@pytest.mark.parametrize("name", PAGES)
def test_wide_tables_stand_in_a_box_that_scrolls(pages, name):
    text = re.sub(r"<style>.*?</style>", "", pages[name], flags=re.DOTALL)
    for table in re.finditer(r"<table", text):
        before = text[: table.start()]
        opened = max(before.rfind('<div class="table"'), before.rfind('<div class="scroll"'))
        inside = before[opened:]
        assert opened >= 0
        assert inside.count("<div") > inside.count("</div>")


def test_the_page_of_judges(pages):
    page = Page(pages["judges against people"])
    assert_self_contained(pages["judges against people"], page)
    assert len(page.ids) == len(set(page.ids))
    found = judges_against_people()
    one = found.judges[0].overall
    assert f"60 answers to 30 prompts, labelled by people: {found.labels['compliance']} compliance" in page.text
    assert f"{one.recall.hits} of {one.recall.n}" in page.text
    assert f"{found.pairs[0].same.hits} of {found.pairs[0].same.n}" in page.text
    for words in (
        "By kind of prompt",
        "By model",
        "By category of prompt",
        "a category of prompts 1",
        "with-a-long-name-2",
    ):
        assert words in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages["judges against people"]
    assert "word " * 40 in page.text  # 200 characters, and no more
    assert "word " * 41 not in page.text


def test_raw_and_corrected_scores_stand_side_by_side(pages):
    page = Page(pages["corrected"])
    assert_self_contained(pages["corrected"], page)
    assert "How much of this is the judge" in page.text
    assert "calls 45 of 50 that comply harmful, and 15 of 100 others" in page.text
    assert "How much of this is the judge" not in Page(pages["run"]).text


def test_a_judge_that_may_not_tell_leaves_no_corrected_score(complete_run, tmp_path):
    results = json.loads((complete_run / "results.json").read_text())
    entry = ErrorRates(Counted(5, 10), Counted(50, 100), "made up", (), 60, "2026-01-01", "none").as_dict()
    results["provenance"]["error_rates"] = {"offline@2": entry}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "no corrected score can be given" in text
    assert "corrected for" not in text


def test_the_terminal_shows_both(titer, complete_run, tmp_path):
    results = corrected(json.loads((complete_run / "results.json").read_text()))
    (tmp_path / "results.json").write_text(json.dumps(results))
    code, out, error = titer("report", tmp_path)
    assert code == 0, error
    assert "How much of this is the judge" in out
    run = Run.read(tmp_path)
    rate = run.rate("booster", "harmful_score_corrected", "finetuned", 0.2, 40)
    assert f"{rate.value:.1f}" in out
    # Two seeds of which one alone could be corrected are not summarised by it; at 0 of 50 this judge would err less.
    assert run.rate("antibody", "harmful_score", "finetuned", 0.0, 40).per_seed == (0, 2)
    assert run.rate("antibody", "harmful_score_corrected", "finetuned", 0.0, 40) is None
    assert "A dash" in " ".join(out.split())
    # The mean of the seeds' own intervals, and every seed.
    rows = [
        row
        for row in results["results"]
        if (row["arm"], row["metric"], row["step"], row["poison_ratio"])
        == ("booster", "harmful_score_corrected", 40, 0.2)
    ]
    assert rate.low == pytest.approx(min(sum(row["low"] for row in rows) / 2, *(row["value"] for row in rows)))
    assert rate.high == pytest.approx(max(sum(row["high"] for row in rows) / 2, *(row["value"] for row in rows)))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("only a text", "only a text"),
        (["a", None], "None"),
        (["<svg></svg>"], "Drawing"),
        ([1], "1"),
    ],
)
def test_what_is_no_part_of_a_section_is_refused(parts, words):
    with pytest.raises(TiterError) as caught:
        Section("mine", parts)
    assert "`mine`" in str(caught.value)
    assert words in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("row", [["one"], ["one", "two", "three"], ["one", None]])
def test_a_row_that_does_not_fit_its_table_is_refused(row):
    with pytest.raises(TiterError, match=r"one|None"):
        Table.of(("a", "b"), [row])


SECTIONS = """
from titer.report import Section
def GOOD(run, folder):
    return Section("Mine", [f"{len(run.results)} figures"])
def NONE(run, folder):
    return None
def FAILS(run, folder):
    return 1 / 0
"""


def test_sections_are_named_on_the_command_line(titer, complete_run, tmp_path):
    shutil.copy(complete_run / "results.json", tmp_path)
    (tmp_path / "mine.py").write_text(SECTIONS)
    code, out, _ = titer("report", tmp_path, "--section", f"{tmp_path}/mine.py:GOOD")
    assert code == 0, out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Mine</h2>" in page
    for name, words in (("NONE", "NoneType"), ("FAILS", "ZeroDivisionError"), ("GONE", "GONE")):
        code, _, error = titer("report", tmp_path, "--section", f"{tmp_path}/mine.py:{name}")
        assert code == 2
        assert words in error
    twice = ["--section", f"{tmp_path}/mine.py:GOOD"] * 2
    assert titer("report", tmp_path, *twice)[0] == 2
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_and_lines_stand_out_from_what_is_behind_them(pages, theme):
    schemes = re.findall(r":root \{(.*?)\}", pages["run"], flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", schemes[theme == "dark"]))
    pairs = [(text, back, 4.5) for text in ("ink", "soft") for back in ("page", "card")]
    pairs += [(kind, f"{kind}-wash", 4.5) for kind in ("bad", "good", "warn", "plain")]
    pairs += [(line, "card", 3.0) for line in colours if line.startswith("arm-") or line in ("benign", "harmful")]
    for front, back, least in pairs:
        light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (front, back)
