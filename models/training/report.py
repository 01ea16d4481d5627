"""A report: a Markdown file and its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from strnn_models.training import checkpoint


class Report:
    """A Markdown file and its pictures in a folder."""

    def __init__(self, out: Path, title: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.parts = out, [f"# {title}"]

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
        """Saves a figure as PNG and shows it."""
        figure.savefig(self.out / f"{name}.png", dpi=110)
        self.parts.append(f"![{caption}]({name}.png)\n\n{caption}")

    def write(self) -> None:
        """Writes report.md."""
        checkpoint.write_atomic(self.out / "report.md", "\n\n".join(self.parts) + "\n")
