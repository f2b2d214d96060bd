"""Statuses, error bodies and Retry-After become errors that people and core can act on."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest

from fusekit.errors import (
    BackendError,
    Busy,
    Denied,
    Exists,
    Invalid,
    NoSpace,
    NotFound,
    NotSupported,
    Stale,
    Throttled,
    TooLarge,
    Unavailable,
)
from fusekit.transfer.status import error_for, retry_after_s
from fusekit.types import Answer

URL = "https://files.example/api/secret-path"


def made(status: int, content: bytes = b"", **headers: str) -> BackendError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_for(Answer(status, named, content, URL))


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, Invalid),
        (401, Denied),
        (403, Denied),
        (404, NotFound),
        (405, NotSupported),
        (408, Unavailable),
        (409, Exists),
        (410, NotFound),
        (412, Stale),
        (413, TooLarge),
        (418, Invalid),
        (422, Invalid),
        (423, Busy),
        (429, Throttled),
        (500, Unavailable),
        (501, NotSupported),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (507, NoSpace),
        (599, Unavailable),
        (299, Unavailable),
        (304, Unavailable),
    ],
)
def test_every_status_is_one_class(status: int, cls: type[BackendError]) -> None:
    error = made(status)
    assert type(error) is cls
    assert error.status == status
    assert str(error).startswith("files.example: ")
    assert "secret-path" not in str(error)


@pytest.mark.parametrize(
    ("content", "kind", "said", "code"),
    [
        (b'{"error_code": "A_B", "message": "no way"}', "application/json", "no way", "A_B"),
        (b'{"error": {"type": "Bad", "message": "inner"}}', "application/json", "inner", "Bad"),
        (b'{"error": "plain words"}', "application/json", "plain words", None),
        (b'{"detail": "scim", "status": "404"}', "application/scim+json", "scim", None),
        (b'[{"message": "first"}]', "application/json", "first", None),
        (b"<Error><Code>Expired</Code><Message>It is &lt;old&gt;</Message></Error>", "x", "It is <old>", "Expired"),
        (b"<html><head><title>Bad\n  Gateway &amp; co</title><body>x</body>", "text/html", "Bad Gateway & co", None),
        (b"first line\nsecond line", "text/plain; charset=utf-8", "first line", None),
    ],
)
def test_the_reason_is_one_line_of_the_body(content: bytes, kind: str, said: str, code: str | None) -> None:
    error = made(400, content, content_type=kind)
    assert str(error) == f"files.example: {said} (400 Bad Request)"
    assert error.code == code


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html><body>" + b"page " * 9999 + b"</body></html>",
        b"\x00\xff" * 500,
        b"{broken",
        b"[" * 5000,
        b"[]",
        b"{}",
    ],
)
def test_a_body_without_a_reason_leaves_the_status(content: bytes) -> None:
    assert str(made(502, content)) == "files.example: 502 Bad Gateway"


def test_long_reasons_are_cut_and_signatures_left_out() -> None:
    text = str(made(400, json.dumps({"message": "see https://b.example/x?sig=SECRET now\n" + "z" * 9999}).encode()))
    assert "see https://b.example/x?… now z" in text
    assert "SECRET" not in text
    assert len(text) < 320
    assert "\n" not in text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0", 0.0), (" 2.5 ", 2.5), ("", None), ("soon", None), ("-1", None), ("inf", None), ("9" * 40, None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}) == seconds


def test_retry_after_as_a_date_is_taken_against_the_answers_own_clock() -> None:
    wrong_clock = 1_000_000_000.0
    headers = {"retry-after": formatdate(wrong_clock + 90, usegmt=True), "date": formatdate(wrong_clock, usegmt=True)}
    assert retry_after_s(headers) == 90.0


def test_retry_after_as_a_date_without_a_clock_is_taken_against_ours() -> None:
    assert retry_after_s({"retry-after": formatdate(time.time() - 90, usegmt=True)}) == 0.0
    found = retry_after_s({"retry-after": formatdate(time.time() + 3600, usegmt=True)})
    assert found is not None
    assert 3500 < found <= 3600


def test_what_explain_leaves_open_is_filled_in() -> None:
    def explain(answer: Answer) -> BackendError | None:
        return Exists("taken", code="X", retry_after_s=1.0)

    headers = {"retry-after": "9", "x-databricks-request-id": "id"}
    error = error_for(Answer(400, headers, b"", URL), explain)
    assert (error.status, error.code, error.request_id, error.retry_after_s) == (400, "X", "id", 1.0)
