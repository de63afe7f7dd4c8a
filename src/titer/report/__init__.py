"""What a run, an audit or an assay found, for people: one self-contained HTML file each, terminal tables, Markdown."""

from __future__ import annotations

from titer.report.assay_page import write_assay_report
from titer.report.audit_page import write_audit
from titer.report.bench_page import bench_markdown, print_bench, write_bench
from titer.report.findings import lead
from titer.report.model_card import model_card, print_scorecard
from titer.report.parts import Cell, Drawing, Section, Table
from titer.report.ranking import comparison_markdown, print_comparison, ranked, write_comparison
from titer.report.run_page import write_report
from titer.report.verdict import print_summary, print_verdict, summary, verdict

__all__ = [
    "Cell",
    "Drawing",
    "Section",
    "Table",
    "bench_markdown",
    "comparison_markdown",
    "lead",
    "model_card",
    "print_bench",
    "print_comparison",
    "print_scorecard",
    "print_summary",
    "print_verdict",
    "ranked",
    "summary",
    "verdict",
    "write_assay_report",
    "write_audit",
    "write_bench",
    "write_comparison",
    "write_report",
]
