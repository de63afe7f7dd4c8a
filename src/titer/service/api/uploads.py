"""Uploads in parts, which become files."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
