"""A plugin installed for real (a dist-info directory on the path), an empty home and an empty runtime directory."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

PLUGIN = """
from __future__ import annotations
import attrs
from fusekit.api import Denied, Entry, Page, Sink, hookimpl, option

@attrs.frozen
class Options:
    host: str = option(default="shop.test", env=("SHOP_HOST",), help="where the shop is")
    path: str = option(default="/")
    port: int = option(default=443, help="its port")
    dry: bool = option(default=False)
    token: str | None = option(default=None, env=("SHOP_TOKEN",), secret=True, help="who asks")

class Shop:
    scheme, options = "shop", Options
    def __init__(self, options, mount):
        self.options = options
    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await page([Entry.file("a.txt", size=5), Entry.file("cut", size=5_000_000)])
    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        if entry.name == "a.txt":
            return await sink.write(b"hello", at=0)
        await sink.write(bytes(max(min(stop, 3_000_000) - start, 0)))
        if stop > 3_000_000:
            raise Denied("the rest is not for you")

@attrs.frozen
class Shade:
    depth: int = option(default=1)
    dry: bool = option(default=False)

class ShadeLayer:
    name, options = "shade", Shade
    def __init__(self, options, mount, inner):
        self.inner = inner

@hookimpl
def fusekit_backends():
    return [Shop]

@hookimpl
def fusekit_emulators():
    from fusekit.testing.emulator import Emulator, EmulatorOptions

    class ShopEmulator(Emulator):
        scheme, options = "shop", EmulatorOptions
        def environment(self):
            return {"SHOP_HOST": self.url, "SHOP_TOKEN": "it's made up"}

    return [ShopEmulator]

@hookimpl
def fusekit_layers():
    return [ShadeLayer]
"""

ENTRY_POINTS = """
[fusekit]
shop = shop_plugin
shade = shop_plugin
broken = broken_plugin
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of one's own: nothing of the machine's configuration, state or live mounts is seen."""
    for variable, name in (
        ("HOME", "home"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_RUNTIME_DIR", "run"),
    ):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.delenv("FUSEKIT_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def shop(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin ``shop`` with a layer ``shade``, beside one that raises on import; returns the home."""
    site = home / "site"
    info = site / "shop-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "shop_plugin.py").write_text(textwrap.dedent(PLUGIN))
    (site / "broken_plugin.py").write_text("raise RuntimeError('no compass on board')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))  # for commands that tests start
    return home
