"""A report: a Markdown file and its pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from strnn_models.training.folder import hold, write_atomic

#: What a report begins with, so that the next one may replace it.
MARK = "<!-- written by strnn-eval -->\n"


class Report:
    """A Markdown file and its pictures in a folder, written when all of it is there."""

    def __init__(self, out: Path, title: str) -> None:
        self.out, self.parts = out, [f"{MARK}# {title}"]
        self.pictures: dict[str, bytes] = {}

    def heading(self, text: str) -> None:
        """Adds a heading."""
        self.parts.append(f"## {text}")

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self.parts.append(text)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Adds a table."""
        lines = [head, ["---"] * len(head), *rows]
        self.parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """Adds a figure, a PNG."""
        png = io.BytesIO()
        figure.savefig(png, dpi=110)
        self.pictures[f"{name}.png"] = png.getvalue()
        self.parts.append(f"![{caption}]({name}.png)\n\n{caption}")

    def write(self, numbers: Mapping[str, float]) -> None:
        """Writes report.md, its pictures, and the numbers as report.json.

        Raises:
            FolderError: another process writes there, or has written files of these names.
        """
        text, table = self.out / "report.md", self.out / "report.json"
        names = {text.name, table.name, *self.pictures}

        def is_report() -> bool:
            return text.is_file() and text.read_bytes().startswith(MARK.encode())

        with hold(self.out, is_report, names.__contains__):
            for name, png in self.pictures.items():
                write_atomic(self.out / name, png)
            write_atomic(text, "\n\n".join(self.parts) + "\n")
            write_atomic(table, json.dumps(numbers, indent=1) + "\n")
