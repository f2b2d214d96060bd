"""The way out of an emulator: how an answer is framed, and what a fault does to it on its way.

Part of the emulator base. `substitute` and `spoiled` change what is said; `Sending` changes how it arrives.
"""

from __future__ import annotations

from typing import Final

import attrs

from fusekit.testing.blobs import Stretch
from fusekit.testing.faults import Fault, What
from fusekit.testing.replies import Reply, phrase, text_reply
from fusekit.testing.server import Request, Wire
from fusekit.testing.stalls import Stalls

_TOGETHER_BYTES: Final = 64 << 10  # a body up to this size leaves in one system call with its head
_CHUNK: Final = 8192
_BODILESS: Final = frozenset({204, 304})


def substitute(fault: Fault) -> Reply | None:
    """Return what some proxy or a broken service sends in place of an answer; None: the service's own error."""
    if fault.what is What.HTML:
        status = fault.status or 200
        page = f"<html><head><title>{status} {phrase(status)}</title></head><body><h1>Sorry</h1></body></html>\n"
        return text_reply(page, status, "text/html; charset=utf-8")
    if fault.what is What.NOT_JSON:
        return Reply(fault.status or 200, {"Content-Type": "application/json"}, b'{"objects": [{"path": "/Users/')
    return None


def spoiled(reply: Reply, fault: Fault) -> Reply:
    """Return ``reply`` with its body or range wrong in a way that its own framing does not show."""
    body, headers = reply.body, dict(reply.headers)
    if fault.what in {What.SHORT, What.OVERLONG}:
        headers.pop("Content-Length", None)
        wanted = len(body) // 2 if fault.what is What.SHORT else len(body) + max(1, len(body) // 2)
        data = _bytes(body)
        return attrs.evolve(reply, headers=headers, body=(data + b"\0" * (wanted - len(data)))[:wanted])
    if fault.what is What.WRONG_RANGE and reply.status == 206:
        units, _, rest = headers["Content-Range"].partition(" ")
        span, _, total = rest.partition("/")
        first, last = (int(number) for number in span.split("-"))
        headers["Content-Range"] = f"{units} {first + 1}-{last + 1}/{total}"
        return attrs.evolve(reply, headers=headers)
    if fault.what is What.WRONG_BYTES and reply.status == 206:
        data = _bytes(body)
        return attrs.evolve(reply, body=data[1:] + bytes([data[0] ^ 0xFF]))
    return reply


class Sending:
    """One answer on its way: ``bytes_out`` of its body are going to leave, and ``cut`` if those are not all.

    After `run`, ``keep_alive`` says whether the connection takes another request.
    """

    def __init__(self, request: Request, reply: Reply, fault: Fault | None) -> None:
        self._fault = fault
        self._body: bytes | Stretch = _framed(request, reply)
        size = len(self._body)
        what = fault.what if fault is not None else None
        in_body = fault is not None and fault.at_byte is not None
        self._pauses = what is What.STALL and in_body
        self._resets = what is What.RESET and in_body
        self.cut = what is What.TRUNCATED or self._resets
        self._stop = size
        if fault is not None and (self.cut or self._pauses):
            self._stop = min(size, size // 2 if fault.at_byte is None else fault.at_byte)
        self.bytes_out = self._stop if self.cut else size
        announced = max(size, 1) if what is What.TRUNCATED else size
        keep = request.keep_alive and not request.body.unwanted and not self.cut and what is not What.EXTRA
        self._head = _head(request, reply, announced, keep)
        self.keep_alive = keep and what is not What.HANGUP

    def run(self, wire: Wire, stalls: Stalls) -> None:
        """Send it.

        Raises:
            Disconnected: the client left; ``bytes_out`` is now what of the body was sent to it.
        """
        before = wire.sent + len(self._head)
        whole, self.bytes_out = self.bytes_out, 0
        try:
            self._send(wire, self._head, 0, self._stop)
            if self._pauses and self._fault is not None:
                stalls.hold(self._fault.hold_s)
            if self._resets:
                wire.reset()
            elif not self.cut:
                self._send(wire, b"", self._stop, len(self._body))
            if self._fault is not None and self._fault.what is What.EXTRA:
                wire.send(b"more than was announced")
        finally:
            self.bytes_out = min(whole, max(0, wire.sent - before))

    def _send(self, wire: Wire, head: bytes, start: int, stop: int) -> None:
        """Send ``head`` and the bytes ``start`` to ``stop`` of the body."""
        body = self._body
        if isinstance(body, bytes) and stop - start <= _TOGETHER_BYTES:
            if data := head + body[start:stop]:
                wire.send(data)
            return
        if head:
            wire.send(head, more=start < stop)
        if isinstance(body, Stretch):
            wire.send_stretch(Stretch(body.blob, body.start + start, body.start + stop))
        else:
            wire.send(memoryview(body)[start:stop])


def _framed(request: Request, reply: Reply) -> bytes | Stretch:
    """Return the body as it goes over the wire."""
    if request.method == "HEAD" or reply.status in _BODILESS:
        return b""
    if not reply.chunked:
        return reply.body
    assert isinstance(reply.body, bytes), "only small bodies are sent in chunks"
    blocks = [reply.body[start : start + _CHUNK] for start in range(0, len(reply.body), _CHUNK)]
    return b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in blocks) + b"0\r\n\r\n"


def _head(request: Request, reply: Reply, size: int, keep: bool) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {phrase(reply.status)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    if reply.chunked:
        lines.append("Transfer-Encoding: chunked")
    elif reply.status not in _BODILESS and "Content-Length" not in reply.headers:
        lines.append(f"Content-Length: {len(reply.body) if request.method == 'HEAD' else size}")
    lines.append(f"Connection: {'keep-alive' if keep else 'close'}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def _bytes(body: bytes | Stretch) -> bytes:
    return body.blob.read(body.start, body.stop) if isinstance(body, Stretch) else body
