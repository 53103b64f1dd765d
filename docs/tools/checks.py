"""What every built page must keep: a mkdocs hook, whose warnings end a strict build."""

from __future__ import annotations

import importlib
import logging
import re
from typing import Any

from markup import has_constructor

log = logging.getLogger("mkdocs.hooks.checks")

BLOCK = re.compile(r"<pre.*?</pre>", re.DOTALL)
INLINE = re.compile(r"<code.*?</code>", re.DOTALL)
ROLE = re.compile(r"(:[a-z:]+:)(?=<code|`)")
FIELD = re.compile(r"(?:<p>|\n)(\w+(?:, \w+)*) : ")
BASE = re.compile(r"Bases:[^\n]*\b(_\w+)<")
CLASS = re.compile(
    r'<h\d id="([\w.]+)" class="doc doc-heading">(?:(?!</h\d>).)*doc-class-name.*?</h\d>\s*(.{0,80})', re.DOTALL
)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Warn of what no reader should see, and of what is not there."""
    folder, _, name = page.file.src_uri.removesuffix(".md").rpartition("/")
    missing = absent(html, f"growarray.{name}") if folder == "api" and name != "index" else []
    for problem in problems(html) + missing:
        log.warning("%s: %s", page.file.src_uri, problem)


def problems(html: str) -> list[str]:
    """Roles, examples and argument lists that are left as text, private bases, classes without a signature."""
    text = BLOCK.sub("", html)
    found = [f"raw role {role}" for role in ROLE.findall(text)]
    found += [f"arguments in running text: {names}" for names in FIELD.findall(INLINE.sub("", text))]
    found += ["an example in a quotation"] * ("<blockquote>" in text or "&gt;&gt;&gt;" in INLINE.sub("", text))
    found += [f"private base {name}" for name in BASE.findall(text)]
    for name, after in CLASS.findall(html):
        if has_constructor(name) and "doc-signature" not in after:
            found.append(f"class without a signature: {name}")
    return found


def absent(html: str, home: str) -> list[str]:
    """Public names of a module that its page does not show."""
    names = importlib.import_module(home).__all__
    return [f"{home}.{name} is not on the page" for name in names if f'id="{home}.{name}"' not in html]
