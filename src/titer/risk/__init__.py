"""Which rows of an upload are harmful, how much of it is, and why one thinks so: from frozen models, before any training."""

from __future__ import annotations

from titer.risk.detector import Detector, RowRisk, defender_rows, known_rows
from titer.risk.kept import fitted, shelved
from titer.risk.share import adapted, poisoned_share

__all__ = ["Detector", "RowRisk", "adapted", "defender_rows", "fitted", "known_rows", "poisoned_share", "shelved"]
