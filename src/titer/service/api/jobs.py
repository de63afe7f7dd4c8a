"""Fine-tuning jobs: create, list, retrieve, cancel, pause and resume them; their events and checkpoints."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
