"""For tests and benchmarks, fusekit's own and those of other people's backends; outside the layers, imported by none.

The emulator base (`fusekit.testing.emulator` and what it is made of) needs the standard library, attrs and
`fusekit.config` only, so that an emulator starts fast and anywhere.
"""

from __future__ import annotations
