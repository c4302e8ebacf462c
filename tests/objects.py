"""S3 on this machine: moto's server, and before it a proxy that counts, and does harm when it is
told to."""

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "wJalrXUtnFEMI-never-to-be-seen"
BUCKET = "bucket"


@dataclass
class Request:
    """One that has come in. number: of those with its method, from 1."""

    method: str
    path: str
    number: int
    headers: dict[str, str] = field(default_factory=dict)


Harm = Callable[[Request], str | int | None]


@dataclass
class Wire:
    """What has passed. harm: says of a request what becomes of it: a status of HTTP, or one of cut,
    half, short, flip, flip-sent, late, deaf; None: nothing."""

    port: int = 0
    backend: int = 0
    requests: list[Request] = field(default_factory=list)
    harm: Harm = lambda request: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str) -> int:
        return sum(one.method == method for one in self.requests)

    def note(self, method: str, path: str, headers: dict[str, str]) -> Request:
        with self.lock:
            request = Request(method, path, self.count(method) + 1, headers)
            self.requests.append(request)
        return request


@contextmanager
def s3() -> Iterator[Wire]:
    """A server with one empty bucket, reached by `environment`."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    wire = Wire(backend=server.get_host_and_port()[1])
    ask(wire, "PUT", f"/{BUCKET}")
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"wire": wire}))
    proxy.daemon_threads = True
    wire.port = proxy.server_address[1]
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}).start()
    try:
        yield wire
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def environment(wire: Wire) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def ask(wire: Wire, method: str, path: str, body: bytes = b"") -> bytes:
    """Of the server itself."""
    connection = http.client.HTTPConnection("127.0.0.1", wire.backend)
    connection.request(method, path, body, {"Content-Length": str(len(body))})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    assert answer.status < 300, (method, path, answer.status, data[:300])
    return data


def flipped(data: bytes) -> bytes:
    """With one bit of the middle another one."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


class Handler(BaseHTTPRequestHandler):
    """Of one request after the other; `wire` is put there by `s3`."""

    protocol_version = "HTTP/1.1"
    wire: Wire

    def log_message(self, *_: object) -> None:
        pass

    def pass_on(self) -> None:
        try:
            self.answered()
        except OSError:  # who asked waits no longer, or the server has ended
            self.close_connection = True

    def answered(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        known = {name.title(): value for name, value in self.headers.items()}
        harm = self.wire.harm(self.wire.note(self.command, self.path, known))
        if isinstance(harm, int):
            self.answer(harm, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if harm == "late":
            time.sleep(0.3)
        if harm != "cut":
            status, told, data = self.asked(flipped(body) if harm == "flip-sent" else body)
        if harm in ("cut", "deaf"):  # deaf: it is done, but nobody hears of it
            self.close_connection = True
            return
        changed = {"flip": flipped, "short": lambda data: data[: len(data) // 2]}
        if harm in changed:
            data = changed[harm](data)
        self.answer(status, told, data, half=harm == "half")

    def asked(self, body: bytes) -> tuple[int, dict, bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        with closing(http.client.HTTPConnection("127.0.0.1", self.wire.backend)) as connection:
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()

    def answer(self, status: int, told: dict, data: bytes, half: bool = False) -> None:
        self.send_response(status)
        size = str(len(data))
        for name, value in told.items():
            if name.lower() == "content-length" and self.command == "HEAD":
                size = value
            elif name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)
        self.close_connection |= half

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on
