"""Every kind of page on a telephone and on a desk: nothing runs out of the page, no text is cut off, labels can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import cards
import pytest
from test_report_html import audit_rows

from titer.errors import TiterError
from titer.report import (
    Drawing,
    Section,
    Table,
    drawing,
    write_assay_report,
    write_audit,
    write_comparison,
    write_report,
)
from titer.report.parts import rate_cell
from titer.results.summary import Run
from titer.stats.intervals import Estimate

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
