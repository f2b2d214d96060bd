"""The options of a source with their values and origins, as plain values: for `fusekit info` and the control socket.

Cli layer.
"""

from __future__ import annotations

from typing import Any

from fusekit.config import declared, shown
from fusekit.plugins.manager import backend_class, layer_class
from fusekit.plugins.sources import Request
from fusekit.settings import Settings


def describe(request: Request) -> dict[str, Any]:
    """Return scheme, path, and every option of backend, layers and engine; a secret is only said to be set."""
    source = request.source
    owners = [(source.scheme, backend_class(source.scheme).options, source.options, source.origins)]
    owners += [(one.name, layer_class(one.name).options, one.options, one.origins) for one in source.layers]
    owners.append(("", Settings, request.settings, request.origins))
    options = [
        {
            "of": owner or "fusekit",
            "name": one.name,
            "value": shown(instance, one),
            "origin": str(origins.get(one.name, "")),
            "secret": one.secret,
            "help": one.help,
        }
        for owner, cls, instance, origins in owners
        for one in declared(cls, owner)
    ]
    return {"scheme": source.scheme, "path": source.path, "profile": source.profile, "options": options}
