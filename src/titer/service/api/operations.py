"""For operators: health, metrics, policies and keys."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
