"""Cloud storage behind signed URLs: GET and PUT of bytes, without the workspace's credentials.

Part of the emulator. A URL carries what it is for and when it ends, and a signature over that, so nothing needs to be
remembered of those handed out; only content is looked up, by number. Errors are XML, as the clouds answer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import weakref
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fusekit.testing.blobs import Blob, TooLarge
from fusekit.testing.replies import Refused, Reply, serve_blob
from fusekit.testing.routes import route
from fusekit.testing.server import Request
from fusekit_databricks.emulator.errors import xml_reply
from fusekit_databricks.emulator.objects import automatic, check_type
from fusekit_databricks.emulator.tree import Node

if TYPE_CHECKING:
    from fusekit_databricks.emulator.service import DatabricksEmulator

_URL_TYPES: Final = {"AWS": "AwsPresignedUrl", "AZURE": "AzureSasUri", "GCP": "GcsSignedUrl"}
_UPLOAD_HEADERS: Final = {
    "AWS": {"x-amz-server-side-encryption": "AES256"},
    "AZURE": {"x-ms-blob-type": "BlockBlob"},
    "GCP": {},
}
_CODES: Final = {403: "AccessDenied", 404: "NoSuchKey", 416: "InvalidRange", 429: "SlowDown", 500: "InternalError",
                 503: "ServiceUnavailable"}  # fmt: skip


class Cloud:
    """Signs URLs, serves them, and keeps replaced content for as long as URLs of it may live."""

    PREFIX: ClassVar[str] = "/cloud-storage/"

    def __init__(self, service: DatabricksEmulator) -> None:
        self._service = service
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._blobs: weakref.WeakValueDictionary[int, Blob] = weakref.WeakValueDictionary()
        self._retired: deque[tuple[float, Blob]] = deque()
        self._epoch = 0

    def download_url(self, node: Node) -> dict[str, Any]:
        """Return the signed URL of a file's content, as object-info and list-files show it."""
        blob = node.content
        with self._lock:
            self._blobs[blob.number] = blob
        return self._signed("GET", {"blob": blob.number, "modified_s": node.modified_ms // 1000}, {})

    def upload_url(self, path: str) -> dict[str, Any]:
        """Return a signed URL that stores what is PUT there as ``path``."""
        return self._signed("PUT", {"path": path}, _UPLOAD_HEADERS[self._service.setup.cloud])

    def retire(self, blob: Blob) -> None:
        """Take note that ``blob`` was replaced."""
        if not self._service.setup.keep_replaced:
            return
        now = self._service.clock.now()
        with self._lock:
            self._retired.append((now + self._service.setup.url_lifetime_s, blob))
            while self._retired and self._retired[0][0] <= now:
                self._retired.popleft()

    def expire(self) -> None:
        """Let all URLs handed out so far be past their end."""
        with self._lock:
            self._epoch += 1

    def failure(self, status: int) -> Reply:
        """Return an error as cloud storage words it."""
        return xml_reply(status, _CODES.get(status, "InvalidRequest"), f"The storage answered {status}.")

    @route("cloud-get", "GET", PREFIX + "{grant}")
    def get(self, request: Request) -> Reply:
        """Serve the content that a signed URL stands for, whole or a range."""
        # A signature of AWS is for one method; the other clouds let a URL for GET be used for HEAD.
        alike = {"GET"} if self._service.setup.cloud == "AWS" else {"GET", "HEAD"}
        grant = self._check(request, alike)
        with self._lock:
            blob = self._blobs.get(grant["blob"])
        if blob is None:
            return xml_reply(404, "NoSuchKey", "The specified key does not exist.")
        reply = serve_blob(request, blob, etag=f'"0x{blob.number:016X}"', modified_s=grant["modified_s"])
        if reply.status == 416:
            failure = xml_reply(416, "InvalidRange", "The requested range is not satisfiable")
            return Reply(416, {**reply.headers, **failure.headers}, failure.body)
        return reply

    @route("cloud-put", "PUT", PREFIX + "{grant}")
    def put(self, request: Request) -> Reply:
        """Store the body as the file that a signed URL stands for."""
        service = self._service
        grant = self._check(request, {"PUT"})
        for name, value in grant["headers"].items():
            if request.headers.get(name.lower()) != value:
                return xml_reply(400, "MissingRequiredHeader", f"The header {name} is missing or has another value.")
        try:
            blob = service.blobs.receive(request.body.blocks(), service.setup.file_bytes_max)
        except TooLarge:
            return xml_reply(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size.")
        with service.lock:
            node = automatic(service, grant["path"], blob)
            old = service.tree.get(node.path)
            if old is not None:
                check_type(old, node)
            elif service.tree.get(node.path.rpartition("/")[0] or "/") is None:
                return xml_reply(404, "NoSuchContainer", "The folder of the file is gone.")
            service.store(node)
        return Reply(201 if service.setup.cloud == "AZURE" else 200, {"ETag": f'"0x{blob.number:016X}"'})

    def _signed(self, method: str, grant: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        setup = self._service.setup
        ends_ms = self._service.clock.now_ms() + int(setup.url_lifetime_s * 1000)
        facts = {**grant, "method": method, "headers": headers, "ends_ms": ends_ms, "epoch": self._epoch}
        text = urlsafe_b64encode(json.dumps(facts, separators=(",", ":")).encode()).decode().rstrip("=")
        return {
            "url": f"{self._service.url}{self.PREFIX}{text}?signature={self._signature(text)}",
            "headers": headers,
            "url_type": _URL_TYPES[setup.cloud],
            "expiry_time_millis": ends_ms,
        }

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def _check(self, request: Request, methods: set[str]) -> dict[str, Any]:
        """Return what the URL grants, after everything that a cloud looks at first; ``methods`` are as good as each other.

        Raises:
            Refused: with XML.
        """
        text = request.params["grant"]
        if not hmac.compare_digest(self._signature(text), request.query.get("signature", "")):
            raise Refused(xml_reply(403, "SignatureDoesNotMatch", "The signature does not match."))
        if "authorization" in request.headers:
            message = "Only one auth mechanism allowed; the request has a signature and an Authorization header."
            raise Refused(xml_reply(400, "InvalidArgument", message))
        facts: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if facts["epoch"] != self._epoch or self._service.clock.now_ms() >= facts["ends_ms"]:
            raise Refused(self._expired())
        if request.method not in methods or facts["method"] not in methods:
            raise Refused(xml_reply(403, "SignatureDoesNotMatch", "The signature is for another method."))
        return facts

    def _expired(self) -> Reply:
        if self._service.setup.cloud == "AZURE":
            detail = "Signature not valid in the specified time frame"
            more = f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>"
            return xml_reply(403, "AuthenticationFailed", "Server failed to authenticate the request.", more)
        if self._service.setup.cloud == "GCP":
            return xml_reply(400, "ExpiredToken", "The provided token has expired.")
        return xml_reply(403, "AccessDenied", "Request has expired")
