"""Why a compiled part of the package is missing: setup.py keeps the reason beside its files."""

from __future__ import annotations

from pathlib import Path


def why_missing(module: str) -> str:
    """Why strnn_kernels.<module> was not compiled, as far as the installation knew."""
    note = Path(__file__).with_name(f"{module}.reason.txt")
    reason = f": {note.read_text().strip()}" if note.exists() else ""
    return f"strnn_kernels.{module} was not compiled when the package was installed{reason}"
