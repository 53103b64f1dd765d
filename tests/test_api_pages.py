"""The API pages: what becomes of docstrings, and that every example on a page runs when it is copied alone."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/api").glob("*.md"))
HOMES = [f"growarray.{page.stem}" for page in PAGES if page.stem != "index"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    """Imports one of the programs that build the pages, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/tools"))
    for name in ("markup", "checks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def modules() -> list[str]:
    """Every module that a public name comes from, and the public modules themselves."""
    found = set(HOMES)
    for home in HOMES:
        public = importlib.import_module(home)
        found |= {getattr(getattr(public, name), "__module__", home) for name in public.__all__}
    return sorted(name for name in found if name.startswith("growarray"))


def docstrings(name: str) -> dict[str, str]:
    """The docstrings of a module's public names and their public members, by path."""
    tree, found = ast.parse(inspect.getsource(importlib.import_module(name))), {}

    def visit(node: ast.AST, path: str) -> None:
        text = ast.get_docstring(node)
        if text is not None:
            found[path] = text
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                visit(child, f"{path}.{child.name}")

    visit(tree, name)
    return found


DOCSTRING = """Sum of :class:`Thing` and (n, *spatial), see :func:`~growarray.ops.conv.conv` or :meth:`gone`.

x : (n, *s)   y : of ``x``
    and more
options, optimize : passed on    all real

Raises ShapeError, TypeError: they do
not fit.

Source: nobody.

>>> total(np.ones(2))  # doctest: +ELLIPSIS
2...

Use it so::

    total(x)
"""

MARKDOWN = """Sum of [`Thing`][growarray.Thing] and (n, \\*spatial), see [`conv`][growarray.conv] or `gone`.

- `x`: (n, \\*s)
- `y`: of ``x`` and more
- `options`, `optimize`: passed on
- all real

Raises ShapeError, TypeError: they do
not fit.

Source: nobody.

```pycon
>>> import numpy as np
>>> total(np.ones(2))
2...
```

Use it so:

```python
total(x)
```"""


def test_a_docstring_of_every_form(tool):
    links = {"Thing": "growarray.Thing", "growarray.ops.conv.conv": "growarray.conv"}
    assert tool("markup").markdown(DOCSTRING, links.get, lambda code: ["import numpy as np"]) == MARKDOWN


def test_a_line_without_four_blanks_goes_on_and_a_sentence_ends_the_list(tool):
    text = "a : one\nthat goes on\nThen a sentence."
    assert tool("markup").markdown(text, {}.get, list) == "- `a`: one that goes on\n\nThen a sentence."


def test_an_example_imports_what_it_does_not_bind(tool):
    code = "try:\n    p = plan(np.ones)\nexcept PlanError as error:\n    print([error for e in p], lambda a: a, len)\n"
    module = importlib.import_module("growarray.contraction.plan")
    assert tool("markup").import_lines(code, module, HOMES) == [
        "import numpy as np",
        "from growarray.contraction import plan",
        "from growarray.errors import PlanError",
    ]
    with pytest.raises(NameError, match="an example uses nowhere, which the module does not have"):
        tool("markup").import_lines("nowhere", module, HOMES)


@pytest.mark.parametrize("name", modules())
def test_nothing_of_a_docstring_is_left_as_text(tool, name):
    markup, module = tool("markup"), importlib.import_module(name)
    for path, text in docstrings(name).items():
        page = markup.markdown(text, {}.get, lambda code: markup.import_lines(code, module, HOMES))
        prose = "".join(page.split("```")[::2])
        assert page.count("```") % 2 == 0, path
        for left in (">>>", ":`", "---", " : ", "::"):
            assert left not in prose, f"{path}: {left!r} in\n{prose}"
        assert page.count("\n>>> ") >= text.count("\n>>> "), path


@pytest.mark.parametrize("name", modules())
def test_every_example_runs_alone(tool, name):
    markup, module = tool("markup"), importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for path, text in docstrings(name).items():
        page = markup.markdown(text, {}.get, lambda code: markup.import_lines(code, module, HOMES))
        for number, block in enumerate(page.split("```pycon\n")[1:]):
            code = block.split("\n```")[0]
            parsed = doctest.DocTestParser().get_doctest(code, {}, f"{path} {number}", None, 0)
            report: list[str] = []
            assert runner.run(parsed, out=report.append).failed == 0, "".join(report)


CLEAN = """<h2 id="growarray.nn.Tanh" class="doc doc-heading">
<span class="doc doc-object-name doc-class-name">Tanh</span></h2>
<div class="language-python doc-signature highlight"><pre><code>Tanh()</code></pre></div>
<p>Bases: <code><a href="#growarray.nn.Module">Module</a></code></p>
<p>See <code>x : y</code>.</p><ul><li><code>x</code>: input</li></ul>
<pre><code>&gt;&gt;&gt; Tanh()  # see :class:`Module`</code></pre>"""


def test_a_clean_page_has_no_problems(tool):
    assert tool("checks").problems(CLEAN) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("See ", "See :class:", "raw role :class:"),
        ("<p>See", "<p>x, y : See", "arguments in running text: x, y"),
        ("<p>See", "<blockquote><p>See", "an example in a quotation"),
        (">Module<", ">_Base<", "private base _Base"),
        ("doc-signature", "", "class without a signature: growarray.nn.Tanh"),
    ],
)
def test_the_build_tells_what_no_reader_should_see(tool, old, new, problem):
    assert tool("checks").problems(CLEAN.replace(old, new)) == [problem]


def test_a_base_class_and_an_exception_need_no_signature(tool):
    for name in ("growarray.nn.Module", "growarray.errors.PlanError"):
        page = CLEAN.replace("growarray.nn.Tanh", name).replace("doc-signature", "")
        assert tool("checks").problems(page) == []


def test_the_build_tells_what_a_page_lacks(tool):
    page = '<h2 id="growarray.testing.check_vjp"></h2>'
    names = importlib.import_module("growarray.testing").__all__
    lacking = [f"growarray.testing.{name} is not on the page" for name in names if name != "check_vjp"]
    assert len(lacking) == len(names) - 1
    assert tool("checks").absent(page, "growarray.testing") == lacking
