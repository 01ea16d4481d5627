"""Every block of Python in the documents runs, page by page, from the top to the bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "models/README.md", *(ROOT / "docs").glob("*.md")])
#: Where one of these is not installed, the page ends with the block that needs it.
OPTIONAL = {"skorch", "lightning", "huggingface_hub"}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(line above the code, code) of each block."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start(1)), m[1]) for m in BLOCK.finditer(text)]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # exporters'
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # advice on workers
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for line, code in blocks(page):
        # Newlines in front, so that a traceback names the line of the page.
        try:
            exec(compile("\n" * line + code, page, "exec"), names)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"line {line}: {error.name} is not installed")


def test_no_block_goes_unnoticed():
    found = sum(len(blocks(page)) for page in PAGES)
    assert found == sum(page.read_text().count("```python") for page in PAGES) > 20
