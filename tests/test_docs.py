"""Every Python block of the README and of the documentation runs alone, as someone copies it into a new file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"<!-- command: (\w+) -->\n```bash\n(.+?)\n```")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks() -> list:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            code = "\n" * line + block.group(1)  # so that a traceback names the line of the page
            found.append(pytest.param(page, code, id=f"{name(page)}:{line + 1}"))
    return found


@pytest.mark.parametrize(("page", "code"), blocks())
def test_a_python_block_runs_alone(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_every_python_block_is_found():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(BLOCK.findall(text)) == text.count("```python"), name(page)


def test_readme_has_the_two_commands():
    commands = dict(COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert commands == {
        "grow": 'pip install ".[cli]" && growarray grow',
        "test": 'pip install ".[test]" && pytest -q -n 2 --dist worksteal',
    }
