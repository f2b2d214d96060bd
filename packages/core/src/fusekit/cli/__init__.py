"""The command line: one module a command, thin functions; the top layer, and the only one that imports typer.

Modules here import what is light; trio, pyfuse3 and httpx come with the library functions that commands call inside.
"""
