"""Databricks workspace files as a backend of fusekit."""

from __future__ import annotations

__version__ = "0.1.0"
