"""The same checks on every Python, and what a release needs; `scripts/test` is the short way for one Python.

Everything installed from outside is pinned with hashes in `constraints.txt`; `nox -s constraints` writes that file anew.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "tests"]
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13"]
DISTRIBUTIONS = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
PINS = ROOT / "constraints.txt"


def install_pinned(session: nox.Session) -> None:
    """Install everything that is pinned, checked against its hash; pyfuse3 is built with what came before it."""
    source: list[str] = []
    wheels: list[str] = []
    for requirement in re.split(r"^(?=\S)", PINS.read_text(), flags=re.MULTILINE):
        (source if requirement.startswith("pyfuse3==") else wheels).append(requirement)
    for name, requirements, how in (
        ("wheels.txt", wheels, "--only-binary=:all:"),
        ("source.txt", source, "--no-build-isolation"),
    ):
        file = Path(session.create_tmp()) / name
        file.write_text("".join(requirements))
        session.install("--require-hashes", "--no-deps", how, "-r", str(file.resolve()))


def install_workspace(session: nox.Session) -> None:
    """Install what is pinned and, editable, every distribution."""
    install_pinned(session)
    editable = [argument for path in DISTRIBUTIONS for argument in ("--editable", str(path))]
    session.install("--no-deps", "--no-build-isolation", *editable)


def build_all(session: nox.Session) -> Path:
    """Build the source distribution of everything, and from that the wheel; return where they are."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for path in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), str(path))
    return dist


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and layers."""
    install_workspace(session)
    session.run("scripts/lint", external=True)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests; arguments after ``--`` are pytest's."""
    install_workspace(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Source distribution and wheel of every distribution, in dist/."""
    install_pinned(session)
    build_all(session)


@nox.session(name="wheels-install", python=PYTHONS)
def wheels_install(session: nox.Session) -> None:
    """The built distributions in environments with nothing else: version, plugins, and a mount where one is possible."""
    install_workspace(session)
    session.run("python", "-m", "pytest", "tests/test_wheels.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in docs/_build/html; a broken reference is an error."""
    install_workspace(session)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Every benchmark: JSON and a table each."""
    install_workspace(session)
    for script in sorted(ROOT.glob("benchmarks/bench_*.py")):
        session.run("python", str(script), *session.posargs)


@nox.session
def crash(session: nox.Session) -> None:
    """500 rounds in which a mount is killed and promises are checked; arguments after ``--`` are those of the script."""
    install_workspace(session)
    session.run("python", "tests/proof/crash.py", *session.posargs)


@nox.session
def model(session: nox.Session) -> None:
    """20,000 random operations on real mounts, compared with the model; then the same while the service fails."""
    install_workspace(session)
    session.run("python", "tests/proof/model.py", *session.posargs)
    session.run("python", "tests/proof/model.py", "--trouble", *session.posargs)


@nox.session
def changelog(session: nox.Session) -> None:
    """The fragments of changelog.d as the next section of CHANGELOG.md; ``-- --draft`` only shows it."""
    install_pinned(session)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "packages/core/src/fusekit/__init__.py").read_text())
    assert version, "fusekit.__version__"
    session.run("towncrier", "build", "--version", version[1], *session.posargs)


@nox.session
def constraints(session: nox.Session) -> None:
    """Write constraints.txt anew: ``-- --upgrade`` for the newest of everything, without it only what must change."""
    session.install("uv")
    session.run(
        "uv", "pip", "compile", "--quiet", "--group", "dev",
        *(str(path.relative_to(ROOT) / "pyproject.toml") for path in DISTRIBUTIONS),
        *("--universal", "--python-version", PYTHONS[0], "--generate-hashes", "--no-header", "--no-annotate"),
        *(argument for path in DISTRIBUTIONS for argument in ("--no-emit-package", distribution_name(path))),
        *("--output-file", PINS.name),
        *session.posargs,
    )  # fmt: skip


def distribution_name(path: Path) -> str:
    """Return the name under which the project in ``path`` is distributed."""
    name = re.search(r'^name = "(.+)"', (path / "pyproject.toml").read_text(), re.MULTILINE)
    assert name, path
    return name[1]
