"""What is titer's own: audits, appeals, and what was measured of a job's model."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
