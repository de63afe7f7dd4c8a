"""Models: those that may be fine-tuned, and those that were."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
