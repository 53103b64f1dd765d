"""Every Python block of the README and of the documentation runs alone, as someone copies it into a new file."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from growarray.contraction.machine import machine_for

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^ *print\(.*\)  # ((?:[\d(\[]|True|False).*)$", re.MULTILINE)  # the comment says what comes
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
def test_a_python_block_runs_alone(page, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert [text for text in PRINTED.findall(code) if text not in printed] == []


def test_the_plan_that_is_shown_is_the_one_that_is_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GROWARRAY_FAST", "0")
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    monkeypatch.setenv("GROWARRAY_CACHE", str(tmp_path))
    machine_for.cache_clear()
    page = (ROOT / "docs/paths.md").read_text(encoding="utf-8")
    exec(BLOCK.search(page)[1], {})
    machine_for.cache_clear()
    assert f"prints itself, here without the extra `fast`:\n\n```text\n{capsys.readouterr().out}```" in page


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


def test_the_readme_lists_the_pages_in_the_order_of_their_navigation():
    listed = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Documentation")[2]
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    pages = re.findall(r"\w[\w-]*\.md", navigation.partition("- API:")[0])
    assert re.findall(r"\(docs/([\w-]+\.md)\)", listed) == pages


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/install.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(extras)


def test_every_file_that_the_architecture_names_exists():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:growarray|tests)/[^`\s]*)`", text))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_floors_of_the_architecture_are_those_that_are_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    floors = [set(re.findall(r"\w+", layer)) for layer in contracts[0]["layers"]]
    rows = re.findall(
        r"^\| (`growarray/.*?) \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [set(re.findall(r"`growarray/(\w+)", row)) for row in rows][: len(floors)] == floors


def test_every_name_that_stands_for_one_of_gromo_exists():
    page = (ROOT / "docs/migrate.md").read_text(encoding="utf-8")
    table = page.partition("### Every name of GroMo 0.1.0")[2].partition("## TensorLy-Torch")[0]
    names = set(re.findall(r"`(growarray(?:\.\w+)+)`", table))
    assert len(names) > 20
    for name in names - {"growarray.growing.norm"}:
        home, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(home), attribute), name
