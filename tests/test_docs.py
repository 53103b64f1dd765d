"""The Python blocks of the README and of the documentation run, in order, one namespace a file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"<!-- command: (\w+) -->\n```bash\n(.+?)\n```")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text(encoding="utf-8"))], ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))  # so that a traceback names the line of the page
        exec(compile("\n" * line + block.group(1), str(page), "exec"), namespace)


def test_every_python_block_is_found():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(BLOCK.findall(text)) == text.count("```python"), name(page)


def test_readme_has_the_two_commands():
    commands = dict(COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert commands == {
        "grow": 'pip install ".[cli]" && growarray grow',
        "test": 'pip install ".[test]" && pytest -q',
    }
