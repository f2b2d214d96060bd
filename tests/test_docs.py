"""What the documentation says holds: every hook with its exact arguments, examples that register, no dead reference."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import typer

from fusekit import api
from fusekit.cli.main import app as program
from fusekit.plugins import manager, specs

ROOT = Path(__file__).parent.parent
HOOKS_PAGE = (ROOT / "docs/reference/hooks.md").read_text()
SECTIONS = {
    found["name"]: (found["arguments"], found["body"])
    for found in re.finditer(
        r"^### (?P<name>\w+)\((?P<arguments>[^)]*)\)$(?P<body>.*?)(?=^##|\Z)", HOOKS_PAGE, re.MULTILINE | re.DOTALL
    )
}
DISCOVERY = [name for name in vars(specs.Discovery) if name.startswith("fusekit_")]


def example(hook: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", SECTIONS[hook][1], re.DOTALL)
    return str(found)


def test_every_hook_is_documented_and_nothing_else() -> None:
    assert sorted(SECTIONS) == sorted([*DISCOVERY, *specs.OPERATIONS])


@pytest.mark.parametrize("hook", [*DISCOVERY, *specs.OPERATIONS])
def test_a_hook_is_documented_with_its_exact_arguments(hook: str) -> None:
    spec = getattr(specs.Discovery if hook in DISCOVERY else specs.Hooks, hook)
    arguments = [name for name in inspect.signature(spec).parameters if name != "self"]
    assert SECTIONS[hook][0] == ", ".join(arguments)
    assert re.search(rf"automethod:: fusekit\.plugins\.specs\.\w+\.{hook}\n", SECTIONS[hook][1])


@pytest.mark.parametrize("hook", specs.OPERATIONS)
def test_the_example_of_a_hook_is_short_and_would_be_accepted(hook: str) -> None:
    code = example(hook)
    assert len(code.splitlines()) <= 10
    names: dict[str, Any] = {name: getattr(api, name) for name in api.__all__}
    names |= {"attrs": attrs, "trio": trio, "asynccontextmanager": asynccontextmanager, "__name__": __name__}
    # The check that a mount makes resolves annotations where the function was defined.
    names |= {"AsyncIterator": AsyncIterator, "Mapping": Mapping}
    exec("from __future__ import annotations\nclass Backend:\n" + textwrap.indent(code, "    "), names)
    backend = names["Backend"]()
    manager.verify(backend)
    assert manager.implemented(backend) == {hook}


@pytest.mark.parametrize("hook", DISCOVERY)
def test_the_example_of_a_discovery_hook_is_short_and_is_that_hook(hook: str) -> None:
    assert len(example(hook).splitlines()) <= 10
    (function,) = ast.parse(example(hook)).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == hook


def test_every_name_of_the_api_is_documented() -> None:
    page = (ROOT / "docs/reference/api.md").read_text() + HOOKS_PAGE
    errors = inspect.getdoc(sys.modules["fusekit.errors"]) or ""
    assert [name for name in api.__all__ if name not in page and name not in errors] == []


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs/reference/commands.md").read_text()
    documented = re.findall(r"^## fusekit (\w+)\n\n```{command} (\w+)\n", page, re.MULTILINE)
    commands: Any = typer.main.get_command(program)
    assert documented == [(name, name) for name in commands.commands]


@pytest.mark.parametrize("scheme", ["databricks", "http", "https", "local", "memory", "tree"])
def test_the_options_of_every_backend_are_documented(scheme: str) -> None:
    page = (ROOT / "docs/reference/options.md").read_text()
    cls = manager.backend_class(scheme).options
    assert f"## {scheme}\n\n```{{options}} {cls.__module__}.{cls.__qualname__} {scheme}\n" in page


def test_the_page_for_authors_shows_the_example_that_is_tested() -> None:
    page = (ROOT / "docs/write-a-backend.md").read_text()
    assert "```{literalinclude} examples/zip/fusekit_zip.py" in page
    assert "```{literalinclude} examples/zip/pyproject.toml" in page


PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("packages/*/*.md")), *sorted((ROOT / "docs").rglob("[!_]*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_names_only_modules_that_are_there(page: Path) -> None:
    named = re.findall(r"`(fusekit(?:_\w+)?/[\w/]+\.py)`", page.read_text())
    assert [name for name in named if not list(ROOT.glob(f"packages/*/src/{name}"))] == []


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_a_page_of_the_repository_links_only_to_what_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", f"{tmp_path}/trees", "-b", "html"]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), f"{tmp_path}/html"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fusekit_list" in (tmp_path / "html/reference/hooks.html").read_text()
