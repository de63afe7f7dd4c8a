"""Chat completions of base and fine-tuned models."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
