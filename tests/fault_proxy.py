"""A proxy before any S3 server that lets requests through, except where a rule says otherwise.

A fault is a function of a request and of ``forward``, which asks the server: it may ask first and spoil the answer, ask
something else, spoil without asking, or ask and lose the answer. The Host header passes unchanged, since the client's signature covers it.

Put here: faults of services and networks, and counting what was asked. Keep out: tests.
"""

import http.client
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_HOP = {"connection", "content-length", "date", "expect", "keep-alive", "server", "transfer-encoding"}


@dataclass(frozen=True)
class Request:
    """What a client asked; ``operation`` is Amazon's name for it."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def bucket(self) -> str:
        """Bucket of a request in path style."""
        return urlsplit(self.target).path.lstrip("/").partition("/")[0]

    @property
    def key(self) -> str:
        """Key as it was meant, '' where a bucket is asked."""
        return unquote(self.target.partition("?")[0].removeprefix("/").partition("/")[2])

    @property
    def query(self) -> dict[str, str]:
        """Parameters behind the question mark."""
        found = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {name: values[0] for name, values in found.items()}

    @property
    def operation(self) -> str:
        """GetObject, ListObjectsV2 … as far as the tests tell them apart."""
        has = self.query.keys()
        if not self.key:
            return _bucket_operation(self.method, has)
        if "uploadId" in has or "uploads" in has:
            return {
                "POST": "CompleteMultipartUpload" if "uploadId" in has else "CreateMultipartUpload",
                "PUT": "UploadPart",
                "DELETE": "AbortMultipartUpload",
            }.get(self.method, "ListParts")
        return f"{self.method.capitalize()}Object"


def _bucket_operation(method: str, has: object) -> str:
    names: Mapping[str, str] = {"uploads": "ListMultipartUploads", "versions": "ListObjectVersions"}
    found = [name for word, name in names.items() if word in has]  # type: ignore[operator]
    if found:
        return found[0]
    return {"GET": "ListObjectsV2", "POST": "DeleteObjects"}.get(method, f"{method.capitalize()}Bucket")


@dataclass(frozen=True)
class Reply:
    """What goes back.

    Attributes
    ----------
    n_promised : length that the header tells; default: the true one
    n_at_once, pause_s : a slow body: so many bytes, then so many seconds of nothing
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    n_promised: int | None = None
    n_at_once: int = 1 << 16
    pause_s: float = 0.0


class Broken(Exception):  # noqa: N818  not an error of the proxy's
    """The connection is reset without an answer."""


Forward = Callable[[Request], Reply]
Fault = Callable[[Request, Forward], Reply]


# -- faults ------------------------------------------------------------------------------------------------------------


def answer(status: int, code: str, message: str = "", **headers: str) -> Fault:
    """Refuse, as S3 words it; the server never hears of the request. ``Retry_After`` becomes ``Retry-After``."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    named = {"Content-Type": "application/xml"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request, _forward: Reply(status, named, body)


def reset(_request: Request, _forward: Forward) -> Reply:
    """Break the connection before the server hears of the request."""
    raise Broken


def lose_answer(request: Request, forward: Forward) -> Reply:
    """Let the server do it and break the connection before its answer arrives."""
    forward(request)
    raise Broken


def cut(n_bytes: int) -> Fault:
    """Hold back the last bytes that were promised."""

    def spoil(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        return replace(reply, body=reply.body[: max(0, len(reply.body) - n_bytes)], n_promised=len(reply.body))

    return spoil


def lengthen(n_bytes: int, fill: Callable[[int], bytes] = random.randbytes) -> Fault:
    """Append bytes, other ones each time, and promise them."""
    return edited(lambda body: body + fill(n_bytes))


def flip_a_bit(request: Request, forward: Forward) -> Reply:
    """Change one bit, another one each time; the length stays."""
    reply = forward(request)
    spoiled = bytearray(reply.body)
    spoiled[random.randrange(len(spoiled))] ^= 1
    return replace(reply, body=bytes(spoiled))


def slow(n_at_once: int, pause_s: float) -> Fault:
    """Send the body drop by drop."""
    return lambda request, forward: replace(forward(request), n_at_once=n_at_once, pause_s=pause_s)


def late(seconds: float) -> Fault:
    """Answer later."""

    def wait(request: Request, forward: Forward) -> Reply:
        time.sleep(seconds)
        return forward(request)

    return wait


def before(act: Callable[[], object]) -> Fault:
    """Do something to the world just before the server is asked."""

    def first(request: Request, forward: Forward) -> Reply:
        act()
        return forward(request)

    return first


def after(act: Callable[[], object]) -> Fault:
    """Do something to the world once the server has answered, before the client knows."""

    def then(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        act()
        return reply

    return then


def edited(edit: Callable[[bytes], bytes]) -> Fault:
    """Rewrite the body of an answer."""

    def rewrite(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        return replace(reply, body=edit(reply.body))

    return rewrite


def with_etags(form: str) -> Fault:
    """Write ETags in another form, in headers and listings; ``form`` holds ``{}``."""

    def rewrite(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        headers = {n: form.format(v.strip('"')) if n.lower() == "etag" else v for n, v in reply.headers.items()}
        quoted = re.compile(rb"<ETag>(?:&quot;|&#34;|\")?([^<&\"]*)(?:&quot;|&#34;|\")?</ETag>")
        tag = form.replace('"', "&quot;").encode()
        body = quoted.sub(lambda found: b"<ETag>" + tag.replace(b"{}", found[1]) + b"</ETag>", reply.body)
        is_listing = not request.key and request.method == "GET"
        return replace(reply, headers=headers, body=body if is_listing else reply.body)

    return rewrite


# -- the proxy ---------------------------------------------------------------------------------------------------------


@dataclass
class Rule:
    """When a fault happens, and how often it did.

    Attributes
    ----------
    key : part of the keys it is about; '' for all, and for requests without a key
    share : of the requests that match, drawn from a seeded generator
    times : how often at most; None for ever
    """

    fault: Fault
    operations: frozenset[str]
    bucket: str = ""
    key: str = ""
    share: float = 1.0
    times: int | None = None
    n_done: int = 0

    def takes(self, request: Request, draw: float) -> bool:
        """Whether this request is to be spoiled."""
        is_meant = not self.operations or request.operation in self.operations
        is_there = self.bucket in {"", request.bucket} and self.key in request.key
        is_left = self.times is None or self.n_done < self.times
        return is_meant and is_there and is_left and draw < self.share


@dataclass(frozen=True)
class Exchange:
    """One request: when it came (monotonic seconds) and what was answered; status 0 is no answer."""

    at: float
    request: Request
    status: int


@dataclass
class FaultProxy:
    """The proxy's rules and what went through it.

    Attributes
    ----------
    url : where clients ask
    log : every request with its answer, in the order of the answers
    """

    upstream: str
    url: str = ""
    rules: list[Rule] = field(default_factory=list)
    log: list["Exchange"] = field(default_factory=list)
    _draws: random.Random = field(default_factory=lambda: random.Random(7))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spoil(
        self,
        fault: Fault,
        *operations: str,
        bucket: str = "",
        key: str = "",
        share: float = 1.0,
        times: int | None = None,
    ) -> Rule:
        """Add a rule; no operation named means all of them. The first rule that takes a request has it."""
        rule = Rule(fault, frozenset(operations), bucket, key, share, times)
        self.rules.append(rule)
        return rule

    def mend(self) -> None:
        """Let everything through again."""
        self.rules.clear()

    def serve(self, request: Request) -> Reply:
        """Answer one request by the rules."""
        asked_at = time.monotonic()
        with self._lock:
            rule = next((r for r in list(self.rules) if r.takes(request, self._draws.random())), None)
            if rule is not None:
                rule.n_done += 1
        status = 0
        try:
            reply = rule.fault(request, self._ask) if rule else self._ask(request)
            status = reply.status
        finally:
            self.log.append(Exchange(asked_at, replace(request, body=b""), status))  # bodies would fill the memory
        return reply

    def asked(self, operation: str, key: str = "") -> list["Exchange"]:
        """Return what was asked of one kind, of keys that hold ``key``."""
        return [e for e in list(self.log) if e.request.operation == operation and key in e.request.key]

    def _ask(self, request: Request) -> Reply:
        address = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    connection.putheader(name, value)
            connection.endheaders(request.body or None)
            found = connection.getresponse()
            length = found.getheader("Content-Length")
            n_promised = int(length) if request.method == "HEAD" and length else None
            return Reply(found.status, dict(found.getheaders()), found.read(), n_promised)
        except OSError as error:
            raise Broken from error
        finally:
            connection.close()


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy before a server."""
    proxy = FaultProxy(upstream)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent about clients that went away: some are killed on purpose."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes, and the second would wait 40 ms for an ACK
    proxy: FaultProxy

    def exchange(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers.items()), body)
        try:
            self._send(self.proxy.serve(request))
        except Broken:
            self._reset()
        except OSError:  # the client went away
            self.close_connection = True

    def _send(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        n_promised = len(reply.body) if reply.n_promised is None else reply.n_promised
        self.send_header("Content-Length", str(n_promised))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(reply.body), reply.n_at_once):
            self.wfile.write(reply.body[start : start + reply.n_at_once])
            time.sleep(reply.pause_s)
        self.close_connection = n_promised != len(reply.body)

    def _reset(self) -> None:
        """Close with RST instead of FIN, as a crashed peer or a firewall does."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = exchange  # noqa: N815  http.server's names

    def log_message(self, *_: object) -> None:
        """Be silent."""
