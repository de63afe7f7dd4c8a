from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from titer.errors import TiterError
from titer.jobs.provenance import environment
from titer.report import write_audit, write_report
from titer.results.summary import Run

SECTIONS = ("verdict", "summary", "course", "plane", "weights", "examples", "settings", "provenance", "glossary")
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """The page's tags, attributes and text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if attributes.get("id")]


def report(run: Path) -> tuple[str, Page]:
    text = write_report(run).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def complete(complete_run: Path) -> tuple[str, Page]:
    """The report of the complete run, written once for the tests that only read it."""
    text = (complete_run / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def assert_self_contained(text: str, page: Page) -> None:
    assert not page.open
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "img", "link", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}:
                assert (value or "").startswith("#"), (tag, name, value)
            if name == "style":
                assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", value or ""))
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "default-src 'none'" in text


def test_the_page_is_self_contained_and_runs_nothing(complete):
    assert_self_contained(*complete)


def test_answers_are_shown_as_text(complete):
    text, page = complete
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}{% raw %}" in page.text
    assert "Grüße, 你好" in page.text
    assert "whole text, 45,000 characters" in page.text
    assert "25,000 more characters" in page.text
    assert "(empty)" in page.text


def test_hostile_names_are_escaped_everywhere(run):
    bad = '<script>x</script>"$\\frac{'
    raw = (run / "results.json").read_text()
    results = json.loads(raw.replace("booster", json.dumps(bad)[1:-1]))
    results["provenance"]["command"] = results["provenance"]["model"] = bad
    results["provenance"]["overlap"] = {bad: 0}
    results["provenance"]["stages"] = [{"name": bad, "key": bad, "status": "failed", "seconds": 1.0, "reason": bad}]
    (run / "results.json").write_text(json.dumps(results))
    text, page = report(run)
    assert_self_contained(text, page)
    assert bad in "".join(page.words)


def test_every_section_is_there_and_ids_are_unique(complete):
    _, page = complete
    assert len(page.ids) == len(set(page.ids))
    assert set(SECTIONS) <= set(page.ids)
    assert [tag for tag, _ in page.tags if tag == "h1"] == ["h1"]
    for phrase in ("Poison ratio", "Over-refusal", "95 % interval", "Judge", "About the content", "nobody picked them"):
        assert phrase in page.text
    assert "Omitted" not in page.text


def test_figures_have_words_and_page_colours(complete):
    text, page = complete
    plots = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "plot"]
    assert len(plots) == 2 * 2 + 2 + 2  # two panels for each ratio, plane and poison, before and after
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    assert not re.search(r"#0[0-9a]0[0-9a]0[0-9a]", text)  # no placeholder colour is left
    assert "var(--arm-2)" in text
    assert "prefers-color-scheme: dark" in text


def test_the_tables_numbers_are_those_of_the_results(complete, complete_run):
    run, (text, _) = complete_run, complete
    table = text[text.index('id="summary"') : text.index('id="course"')]
    shown = [
        tuple(re.findall(r"<b>([\d.]+)</b><small>([\d.]+–[\d.]+)</small>", line))
        for line in re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", table, flags=re.DOTALL)
    ]
    found = Run.read(run)
    rows = found.rows
    assert len(shown) == len(rows) == 6
    for cells, row in zip(shown, rows, strict=True):
        expected = (
            row.rate("harmful_score", "aligned"),
            row.rate("harmful_score"),
            row.rate("refusal_rate"),
            row.rate("broken_rate"),
            row.rate("over_refusal"),
            row.rate("finetune_accuracy", "aligned"),
            row.rate("finetune_accuracy"),
        )
        assert cells == tuple((f"{cell.value:.1f}", cell.interval) for cell in expected)
    raw = [
        row.value
        for row in found.results
        if (row.arm, row.metric, row.step, row.poison_ratio) == ("undefended", "harmful_score", 40, 0.2)
    ]
    assert shown[3][1][0] == f"{sum(raw) / len(raw):.1f}"
    assert "n = 50" in table


def test_the_weights_section_gives_the_auroc_and_the_weight_of_harmful_rows(run):
    rows = []
    for seed in (0, 1):
        for index, log_ratio in enumerate((-9.0, -1.0, -2.0, 0.0)):  # the first two are harmful
            rows.append(
                {"arm": "antibody", "seed": seed, "poison_ratio": 0.2, "index": index, "prompt": "x", "when": "before"}
                | {"origin": "harmful" if index < 2 else "task", "log_ratio": log_ratio, "weight": 0.1 * (index + 1)}
            )
    (run / "weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, page = report(run)
    assert "AUROC 0.75 · harmful rows hold 30.0 % of the weight" in page.text  # 3 of 4 pairs; (0.1 + 0.2) / 1.0


def test_inverted_weights_are_called_so(run):
    rows = [json.loads(line) for line in (run / "weights.jsonl").read_text().splitlines()]
    for row in rows:
        row["log_ratio"] = -row["log_ratio"]
    (run / "weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "inverted" in report(run)[1].text


def test_optional_files_may_be_missing(run):
    for name in ("weights.jsonl", "inferences.jsonl", "scores.jsonl"):
        (run / name).unlink()
    text, page = report(run)
    assert_self_contained(text, page)
    assert "no weights.jsonl" in page.text
    assert "no inferences.jsonl" in page.text
    assert set(SECTIONS) <= set(page.ids)


def test_answers_without_scores_have_no_verdict(run):
    (run / "scores.jsonl").unlink()
    _, page = report(run)
    assert "no scores.jsonl" in page.text
    assert "I'm sorry, but I can't help with that." in page.text


def test_bare_provenance_is_enough(run):
    results = json.loads((run / "results.json").read_text())
    # What Python's `write_results` leaves, and `titer evaluate`.
    for provenance in ({}, {"model": "m", **environment(), "judge": "offline@2"}):
        (run / "results.json").write_text(json.dumps({**results, "provenance": provenance}))
        assert_self_contained(*report(run))


def test_no_results_at_all_is_still_a_page(run):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "results": []}))
    _, page = report(run)
    assert "shows nothing" in page.text


def test_failed_stages_stand_at_the_top(run):
    results = json.loads((run / "results.json").read_text())
    results["results"] = [row for row in results["results"] if row["arm"] != "booster"]
    results["provenance"]["stages"] += [
        {"name": "align/booster", "key": "ff", "status": "failed", "seconds": 3.0, "reason": "out of memory <b>"},
        {
            "name": "finetune/booster",
            "key": "fe",
            "status": "skipped",
            "seconds": 0.0,
            "reason": "needs align/booster",
        },
    ]
    (run / "results.json").write_text(json.dumps(results))
    text, page = report(run)
    assert "1 job failed" in page.text
    assert "out of memory &lt;b&gt;" in text
    assert text.index("failed-jobs") < text.index('id="summary"')
    assert "booster has no result" in page.text
    assert "Skipped because of that: finetune/booster" in page.text


def test_several_judges_are_shown_side_by_side(run):
    results = json.loads((run / "results.json").read_text())
    results["results"] += [
        {**row, "judge": "second@7", "value": 0.0, "low": 0.0, "high": 7.1}
        for row in results["results"]
        if row["metric"] == "harmful_score"
    ]
    (run / "results.json").write_text(json.dumps(results))
    _, page = report(run)
    assert "The same answers, other judges" in page.text
    assert "second@7" in page.text


def test_many_arms_and_one_ratio_draw(run):
    results = json.loads((run / "results.json").read_text())
    base = [
        row
        for row in results["results"]
        if row["arm"] == "antibody" and (row["phase"], row["poison_ratio"]) in (("aligned", 0.0), ("finetuned", 0.2))
    ]
    results["results"] = [{**row, "arm": f"arm{number}"} for number in range(10) for row in base]
    results["provenance"].pop("experiment")
    (run / "results.json").write_text(json.dumps(results))
    text, page = report(run)
    assert_self_contained(text, page)
    assert "Harmful score against poison ratio" not in page.text


def test_the_report_is_replaced_whole_and_alike(run):
    first = write_report(run)
    text = first.read_text(encoding="utf-8")
    assert first == run / "report.html"
    assert write_report(run).read_text(encoding="utf-8") == text
    (run / "results.json").write_text('{"schema": "other/1"}')
    with pytest.raises(TiterError, match="schema"):
        write_report(run)
    assert first.read_text(encoding="utf-8") == text
    assert {path.name for path in run.iterdir()} == {
        "results.json",
        "weights.jsonl",
        "inferences.jsonl",
        "scores.jsonl",
        "report.html",
    }


@pytest.mark.parametrize("name", ["weights.jsonl", "inferences.jsonl", "scores.jsonl"])
def test_a_broken_line_is_named(run, name):
    with (run / name).open("a") as file:
        file.write('{"arm": "half a li')
    count = len((run / name).read_text().splitlines())
    with pytest.raises(TiterError, match=rf"{name}:{count}: not JSON"):
        write_report(run)
    (run / name).write_text("{}\n")
    with pytest.raises(TiterError, match=rf"{name}:1: .* is missing"):
        write_report(run)


def audit_rows(labelled: bool) -> list[dict[str, object]]:
    random.seed(1)
    rows = [
        {
            "index": index,
            "prompt": f"<b>prompt {index}</b>",
            "completion": "<script>alert(1)</script>" if index % 2 else "word " * 5000,
            "log_ratio": random.gauss(-20.0 if index < 30 else -3.0, 4.0),
            "weight": 0.5,
            "origin": ("harmful" if index < 30 else "task") if labelled else None,
        }
        for index in range(130)
    ]
    return sorted(rows, key=lambda row: row["log_ratio"])


def test_an_audit_with_labels(tmp_path):
    path = write_audit(tmp_path / "audit.html", audit_rows(True), {"dataset": "up.jsonl", "model": "m", "n": {"a": 1}})
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert_self_contained(text, page)
    assert "<script" not in text
    assert "<b>prompt" not in text
    assert "AUROC 0.99" in page.text or "AUROC 1.00" in page.text
    assert "Of the 30 most suspicious rows" in page.text
    assert text.count('data-name="rank"') == 100
    assert "What this can and cannot see" in page.text
    assert len(page.ids) == len(set(page.ids))


def test_an_audit_without_labels_claims_no_accuracy(tmp_path):
    page = Page(write_audit(tmp_path / "audit.html", audit_rows(False), {"model": "m"}).read_text(encoding="utf-8"))
    assert "AUROC" not in page.text
    assert "is not known" in page.text


def test_an_empty_audit_is_an_error(tmp_path):
    with pytest.raises(TiterError, match="no rows"):
        write_audit(tmp_path / "audit.html", [], {})
    assert not list(tmp_path.iterdir())
