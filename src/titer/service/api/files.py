"""Files: upload, list, retrieve, read and delete them."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
