"""Real programs on a real mount: what every backend that can be written to lets them do.

Outside the layers. A test module of a backend subclasses `ProgramSuite`, marks itself ``pytest.mark.fuse`` and gives
one fixture::

    @pytest.fixture(scope="module")
    def mount(tmp_path_factory):
        with cli_mount("mine:", tmp_path_factory.mktemp("mine"), environment={...}) as there:
            yield Mounted(there, behind)

    class TestMine(ProgramSuite):
        hard_links = False

``behind(path)`` returns what the service holds below ``path`` (relative to the mount), seen by other means than the
mount. Each test works in a folder of its own and ends with `Place.check`: that is what the mount shows, and that is
what the service holds. All tests of a module share one mount, as the programs of a user do; a test whose program is not
installed is skipped.
"""

from __future__ import annotations

from fusekit.testing._programs_base import Held, Mounted, Place, held, needs
from fusekit.testing._programs_bytes import Bytes
from fusekit.testing._programs_names import Names
from fusekit.testing._programs_tools import Tools

__all__ = ["Held", "Mounted", "Place", "ProgramSuite", "held", "needs"]


class ProgramSuite(Tools, Bytes, Names):
    """Every program; a subclass gives the ``mount`` fixture."""
