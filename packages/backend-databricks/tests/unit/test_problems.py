"""Each shape in which the service words an error becomes the right class, with the service's own words."""

from __future__ import annotations

import json

import pytest

from fusekit.api import (
    Answer,
    BackendError,
    Denied,
    Exists,
    Invalid,
    NotEmpty,
    NotFound,
    NotSupported,
    Throttled,
    TooLarge,
    Unavailable,
)
from fusekit_databricks.problems import explain


def said(status: int, body: object) -> BackendError | None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return explain(Answer(status, {}, content))


@pytest.mark.parametrize(
    ("status", "body", "cls"),
    [
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Path (/x) doesn't exist."}, NotFound),
        (400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "Node named 'x' already exists"}, Exists),
        (409, {"error_code": "ALREADY_EXISTS", "message": "x"}, Exists),
        (400, {"error_code": "DIRECTORY_NOT_EMPTY", "message": "Folder (/x) is not empty"}, NotEmpty),
        (400, {"error_code": "UNKNOWN", "message": "Folder (/x) is not empty"}, NotEmpty),
        (400, {"error_code": "UNKNOWN", "message": "The parent folder (/x) does not exist."}, NotFound),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Path (/x) already exists."}, Exists),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "no zip"}, Invalid),
        (403, {"error_code": "PERMISSION_DENIED", "message": "x"}, Denied),
        (401, {"error_code": "UNAUTHENTICATED", "message": "x"}, Denied),
        (400, {"error_code": "MAX_NOTEBOOK_SIZE_EXCEEDED", "message": "x"}, TooLarge),
        (429, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "x"}, Throttled),
        (400, {"error_code": "RESOURCE_EXHAUSTED", "message": "the code counts, not the status"}, Throttled),
        (503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "x"}, Unavailable),
        (409, {"error_code": "ABORTED", "message": "x"}, Unavailable),
        (404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "No API found"}, NotSupported),
        (404, b"RESOURCE_DOES_NOT_EXIST: no such thing", NotFound),
        (400, {"error": "File already exists at (/x)"}, Exists),
        (400, {"detail": "The name already exists", "status": "400"}, Exists),
    ],
)
def test_the_code_decides_and_phrases_where_the_code_is_vague(
    status: int, body: object, cls: type[BackendError]
) -> None:
    assert type(said(status, body)) is cls


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"error_code": "UNKNOWN", "message": "the node already exists in another shard"}),
        (404, b"<html><title>Not Found</title></html>"),
        (403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),
        (404, b""),
        (400, {"error_code": "SOMETHING_NEW", "message": "x"}),
        (400, b"{broken"),
        (400, b"[]"),
        (400, {"error_code": 7, "message": ["x"]}),
    ],
)
def test_what_it_does_not_know_is_left_to_the_table(status: int, body: object) -> None:
    assert said(status, body) is None


def test_the_message_is_one_line_in_the_services_words() -> None:
    error = said(404, {"error_code": "NOT_FOUND", "message": "Path (/x)\n  doesn't exist. " + "z" * 999})
    assert error is not None
    assert str(error).startswith("Path (/x) doesn't exist. zzz")
    assert len(str(error)) <= 240
    assert (error.code, error.status) == ("NOT_FOUND", 404)


def test_an_error_without_words_says_its_code() -> None:
    assert str(said(403, {"error_code": "PERMISSION_DENIED"})) == "permission denied"
