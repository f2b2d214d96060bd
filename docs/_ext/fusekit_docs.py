"""Directives for the reference pages, so that what they say comes from the code.

``options`` shows an options class (its dotted name) as a table of names, defaults, environment variables and help texts.
``command`` shows the help text of a command of `fusekit`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import attrs
import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fusekit.cli.main import app as program
from fusekit.config import Declared, declared


class OptionsTable(SphinxDirective):
    """A row for each option of an attrs class."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table; the second argument is the scheme, none for the engine's own options."""
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(import_module(module), name)
        scheme = self.arguments[1] if len(self.arguments) > 1 else ""
        return [table(cls, declared(cls, scheme))]


class CommandHelp(SphinxDirective):
    """What ``fusekit COMMAND --help`` prints."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the text as it is, 100 columns wide."""
        command: Any = typer.main.get_command(program)
        context = command.make_context("fusekit", self.arguments, resilient_parsing=True)
        for name in self.arguments[0].split():
            command = command.get_command(context, name)
            context = command.context_class(command, parent=context, info_name=name, terminal_width=100, color=False)
        return [nodes.literal_block(text=command.get_help(context), language="text")]


def table(cls: type[Any], options: Iterable[Declared]) -> nodes.table:
    """Return ``options``, those of ``cls``; a default that is found out at run time would be this machine's, and is left out."""
    fields = attrs.fields_dict(cls)
    rows: list[list[Any]] = [["Option", "Takes", "Default", "Environment", "What it does"]]
    for one in options:
        found_out = hasattr(fields[one.field].default, "factory")
        default = "required" if one.default is None else [one.default] if one.default and not found_out else ""
        rows.append([[one.name], one.kind, default, list(one.variables), one.help])
    return grid(rows)


def grid(rows: list[list[Any]]) -> nodes.table:
    """Return a docutils table; a cell is text, or a list of things to show as code."""
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    made = [nodes.row("", *(nodes.entry("", paragraph(cell)) for cell in row)) for row in rows]
    group += [nodes.thead("", made[0]), nodes.tbody("", *made[1:])]
    return nodes.table("", group)


def paragraph(cell: str | list[str]) -> nodes.paragraph:
    """Return ``cell`` as text, or as words of code."""
    if isinstance(cell, str):
        return nodes.paragraph(text=cell)
    words: list[nodes.Node] = []
    for word in filter(None, cell):
        words += [nodes.Text(" "), nodes.literal(text=word)] if words else [nodes.literal(text=word)]
    return nodes.paragraph("", "", *words)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("options", OptionsTable)
    app.add_directive("command", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
