"""Directives for the reference pages, so that what they say comes from the code.

``options`` shows an options class (its dotted name) as a table of names, defaults, environment variables and help texts.
"""

from __future__ import annotations

import enum
from importlib import import_module
from typing import Any

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fusekit.config import METADATA_KEY


class OptionsTable(SphinxDirective):
    """A row for each option of an attrs class."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table; the second argument is the scheme, for the names of environment variables."""
        module, _, name = self.arguments[0].rpartition(".")
        prefix = "FUSEKIT_" + (f"{self.arguments[1].upper()}_" if len(self.arguments) > 1 else "")
        return [table(getattr(import_module(module), name), prefix)]


def table(cls: type[Any], environment: str) -> nodes.table:
    """Return the options of ``cls``, an attrs class whose fields are made by `fusekit.api.option`."""
    rows = []
    for field in attrs.fields(cls):
        about = field.metadata.get(METADATA_KEY, {})
        variables = [environment + field.name.upper(), *about.get("env", ())]
        rows.append([[field.name], [default_of(field)], variables, about.get("help", "")])
    return grid([["Option", "Default", "Environment", "What it does"], *rows])


def default_of(field: attrs.Attribute[Any]) -> str:
    """Return the default as somebody would write it, empty where it is found out at run time or there is none."""
    default: Any = field.default
    if default in (attrs.NOTHING, None, ()) or hasattr(default, "takes_self"):
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, enum.Enum):
        return str(default.value)
    if field.name.endswith(("mode", "umask")):
        return f"{default:03o}"
    if field.name.endswith("_bytes") and default % (1 << 20) == 0:
        return f"{default >> 20}MiB"
    return str(default)


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
    return {"parallel_read_safe": True, "parallel_write_safe": True}
