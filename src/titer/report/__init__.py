"""What a run or an assay found, for people: one self-contained HTML file, and the same summary as a terminal table."""

from __future__ import annotations

from titer.report.assay import write_assay_report
from titer.report.assay_findings import lead
from titer.report.assay_tables import (
    comparison_markdown,
    comparison_rows,
    model_card,
    print_comparison,
    print_scorecard,
)
from titer.report.comparison import Comparison
from titer.report.html import write_audit, write_report
from titer.report.tables import Estimate, SummaryRow, print_summary, read_results, summary_rows
from titer.report.verdict import ArmVerdict, Verdict, print_verdict, summary, verdict

__all__ = [
    "ArmVerdict",
    "Comparison",
    "Estimate",
    "SummaryRow",
    "Verdict",
    "comparison_markdown",
    "comparison_rows",
    "lead",
    "model_card",
    "print_comparison",
    "print_scorecard",
    "print_summary",
    "print_verdict",
    "read_results",
    "summary",
    "summary_rows",
    "verdict",
    "write_assay_report",
    "write_audit",
    "write_report",
]
