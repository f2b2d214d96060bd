"""What the calls make of answers: when a URL ends, and which 404 means that something is not there."""

from __future__ import annotations

import json
from typing import Any, cast

import attrs
import pytest
import trio

from fusekit.api import Answer, Http, NotFound, Unavailable
from fusekit_databricks.api import Workspace


@attrs.define
class Canned:
    """HTTP with one answer."""

    answer: Answer | Exception
    asked: list[tuple[str, str, dict[str, Any]]] = attrs.field(factory=list)

    async def request(self, method: str, url: str, **rest: Any) -> Answer:
        self.asked.append((method, url, rest))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def workspace(answer: Answer | Exception) -> tuple[Workspace, Canned]:
    canned = Canned(answer)
    return Workspace(cast(Http, canned)), canned


def described(ends_ms: object, date: str = "Fri, 01 Mar 2024 10:00:00 GMT") -> Answer:
    signed = {"url": "https://cloud.example/x", "headers": {"a": "b", "c": 1}, "expiry_time_millis": ends_ms}
    info = {"path": "/f", "object_type": "FILE", "size": 1, "modified_at": 2}
    body = {"wsfs_object_info": {"object_info": info, "signed_url": signed}}
    return Answer(200, {"date": date} if date else {}, json.dumps(body).encode())


async def test_a_url_ends_when_the_service_says_by_its_own_clock() -> None:
    calls, _ = workspace(described(1_709_287_200_000 + 900_000))
    link = (await calls.object_info("/f")).link
    assert link is not None
    assert 899 < link.ends - trio.current_time() <= 900
    assert link.headers == {"a": "b"}


@pytest.mark.parametrize("ends_ms", [None, "soon", 0, 1_709_287_200_000 - 1])
async def test_a_url_that_was_just_made_is_not_over(ends_ms: object) -> None:
    calls, _ = workspace(described(ends_ms))
    link = (await calls.object_info("/f")).link
    assert link is not None
    assert 299 < link.ends - trio.current_time() <= 300


async def test_a_404_of_somebody_else_is_not_a_missing_object() -> None:
    calls, _ = workspace(NotFound("a page", status=404))
    with pytest.raises(Unavailable, match="not the workspace's own"):
        await calls.object_info("/f")
    calls, _ = workspace(NotFound("really", status=404, code="RESOURCE_DOES_NOT_EXIST"))
    with pytest.raises(NotFound):
        await calls.object_info("/f")


async def test_delete_is_never_recursive() -> None:
    calls, canned = workspace(Answer(200, {}, b""))
    await calls.delete("/f")
    assert canned.asked == [("POST", "/api/2.0/workspace/delete", {"json": {"path": "/f", "recursive": False}})]
