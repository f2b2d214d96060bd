"""What makes a notebook a notebook: headers, cell markers, suffixes, and the formats that it is exported in.

Part of the emulator; pure functions. A notebook is stored as what was imported, source text or Jupyter JSON, and
converted when somebody asks for the other form.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any, Final

HEADERS: Final = {
    "PYTHON": "# Databricks notebook source",
    "SQL": "-- Databricks notebook source",
    "SCALA": "// Databricks notebook source",
    "R": "# Databricks notebook source",
}
SUFFIXES: Final = {".py": "PYTHON", ".sql": "SQL", ".scala": "SCALA", ".r": "R"}
FILE_TYPES: Final = {"PYTHON": "py", "SQL": "sql", "SCALA": "scala", "R": "r"}
_KERNELS: Final = {"PYTHON": "python", "SQL": "sql", "SCALA": "scala", "R": "r"}
HEAD_BYTES: Final = 64  # enough of a body to tell whether it starts with a header


def detect(path: str, head: bytes) -> tuple[str, str] | None:
    """Return the notebook's path (without suffix) and language if a body that starts with ``head`` is one.

    Source: the vendor's fake workspace and the SDK's documentation of format AUTO.
    """
    dot = path.rfind(".")
    suffix, language = path[dot:], SUFFIXES.get(path[dot:].lower())
    if dot <= path.rfind("/") + 1 or language is None:
        return None
    line = head.partition(b"\n")[0].rstrip(b"\r")
    return (path[: -len(suffix)], language) if line.decode("utf-8", "replace") == HEADERS[language] else None


def is_jupyter(data: bytes) -> bool:
    """Return whether ``data`` is a Jupyter notebook."""
    try:
        found = json.loads(data)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get("cells"), list) and "nbformat" in found


def normalised(source: str, language: str) -> str:
    """Return ``source`` as an export gives it back: with the header line and a newline at the end."""
    header = HEADERS[language]
    text = source if source.split("\n", 1)[0].rstrip("\r") == header else f"{header}\n{source}"
    return text if text.endswith("\n") else text + "\n"


def cells(source: str, language: str) -> list[str]:
    """Return the text of each cell of a source notebook."""
    comment = HEADERS[language].split()[0]
    text = source.removeprefix(HEADERS[language]).lstrip("\n")
    return [cell.strip("\n") for cell in re.split(rf"^{re.escape(comment)} COMMAND -+\s*$", text, flags=re.MULTILINE)]


def to_jupyter(source: str, language: str, name: str) -> bytes:
    """Return a source notebook as nbformat 4 JSON; Markdown cells (``MAGIC %md``) become Markdown."""
    comment = HEADERS[language].split()[0]
    found: list[dict[str, Any]] = []
    for text in cells(source, language):
        plain = re.sub(rf"^{re.escape(comment)} MAGIC ?", "", text, flags=re.MULTILINE)
        if plain.startswith("%md"):
            found.append({"cell_type": "markdown", "metadata": {}, "source": _lines(plain[3:].lstrip(" \n"))})
        else:
            found.append(
                {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": _lines(plain)}
            )
    notebook = {
        "cells": found,
        "metadata": {
            "application/vnd.databricks.v1+notebook": {"language": _KERNELS[language], "notebookName": name},
            "language_info": {"name": _KERNELS[language]},
        },
        "nbformat": 4,
        "nbformat_minor": 0,
    }
    return json.dumps(notebook, indent=1).encode()


def from_jupyter(data: bytes, language: str) -> str:
    """Return a Jupyter notebook as source text; outputs are lost, as in the service."""
    comment = HEADERS[language].split()[0]
    texts: list[str] = []
    for cell in json.loads(data)["cells"]:
        text = "".join(cell.get("source", []))
        if cell.get("cell_type") == "markdown":
            text = f"%md\n{text}"
        if text.startswith("%"):
            text = "\n".join(f"{comment} MAGIC {line}".rstrip() for line in text.split("\n"))
        texts.append(text)
    return f"{HEADERS[language]}\n" + f"\n\n{comment} COMMAND ----------\n\n".join(texts) + "\n"


def to_html(source: str, name: str) -> bytes:
    """Return a page that shows a source notebook."""
    head = f"<!DOCTYPE html><html><head><title>{html.escape(name)}</title></head>"
    return f"{head}<body><pre>{html.escape(source)}</pre></body></html>\n".encode()


def to_r_markdown(source: str) -> bytes:
    """Return a notebook in R as R Markdown."""
    return "\n\n".join(f"```{{r}}\n{cell}\n```" for cell in cells(source, "R")).encode() + b"\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
