"""An S3 server that does next to nothing, so that a client beside it is what is measured.

    python tests/bench/sink.py PORT

Path style, plain HTTP/1.1 with keep-alive, no signatures: the requests of boto3, of s3torchconnector and of our
streams. Every bucket exists. A body is received into a buffer that is used again, its CRC64-NVME is compared where
the request names one, and it is kept, but for those of a MiB and more in the bucket `discarded`: these are counted
only. A checksum of zero is not compared: that is how a client without checksums is measured.
"""

import base64
import itertools
import sys
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from awscrt.checksums import combine_crc64nvme, crc64nvme

DISCARDED = "discarded"
LARGE_BYTES = 2**20
CHUNK_BYTES = 2**20
"""What is received is compared while it is in the processor's cache."""
CHECKSUM = "x-amz-checksum-crc64nvme"
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
MODIFIED = "2026-01-01T00:00:00.000Z"


class Body(NamedTuple):
    """One request's body: an object, or a part of one."""

    size: int
    checksum: int
    """CRC64-NVME of its bytes."""
    data: memoryview | None
    """None where it was discarded."""


class Stored(NamedTuple):
    """An object, as the parts that it was uploaded in."""

    parts: list[Body]
    etag: str

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def is_kept(self) -> bool:
        return all(part.data is not None for part in self.parts)

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from `start` up to `end`, without a copy."""
        begin = 0
        for part in self.parts:
            assert part.data is not None
            piece = part.data[max(start - begin, 0) : max(end - begin, 0)]
            begin += part.size
            if piece:
                yield piece


class Refused(Exception):  # noqa: N818 - an answer, not an error of this program
    """A request that S3 answers with an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class Sink(ThreadingHTTPServer):
    """The server, with all that it keeps."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, dict[int, Body]] = {}
        self.numbers = itertools.count(1)
        super().__init__(("127.0.0.1", port), Handler)

    def keep(self, path: str, parts: list[Body]) -> Stored:
        self.objects[path] = stored = Stored(parts, f'"{next(self.numbers):032x}"')
        return stored


class Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    server: Sink
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 2**16

    def setup(self) -> None:
        super().setup()
        self.chunk = memoryview(bytearray(CHUNK_BYTES))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each request would cost."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _serve(self) -> None:
        """Answer one request; `do_<method>` of the base class are all this one."""
        address = urlsplit(self.path)
        self.key = unquote(address.path).strip("/")
        self.query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        method = getattr(self, f"_{self.command.lower()}")
        try:
            method()
        except Refused as refused:
            self._answer(refused.status, f"{XML}<Error><Code>{refused.code}</Code></Error>".encode())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def _stored(self, path: str) -> Stored:
        if path not in self.server.objects:
            raise Refused(404, "NoSuchKey")
        return self.server.objects[path]

    def _put(self) -> None:
        body = self._body()
        if "/" not in self.key:
            return self._answer(200)
        if source := self.headers.get("x-amz-copy-source"):
            self.server.objects[self.key] = copied = self._stored(unquote(source).strip("/"))
            name = "CopyObjectResult"
            return self._answer(200, f"{XML}<{name}><ETag>{escape(copied.etag)}</ETag></{name}>".encode())
        if "uploadId" not in self.query:
            if self.headers.get("If-None-Match") == "*" and self.key in self.server.objects:
                raise Refused(412, "PreconditionFailed")
            return self._answer(200, headers={"ETag": self.server.keep(self.key, [body]).etag})
        if self.query["uploadId"] not in self.server.uploads:
            raise Refused(404, "NoSuchUpload")
        number = int(self.query["partNumber"])
        self.server.uploads[self.query["uploadId"]][number] = body
        return self._answer(200, headers={"ETag": f'"{number:032x}"'})

    def _post(self) -> None:
        self._body()
        bucket, _, key = self.key.partition("/")
        where = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
        if "uploads" in self.query:
            upload = f"{next(self.server.numbers):032x}"
            self.server.uploads[upload] = {}
            name = "InitiateMultipartUploadResult"
            return self._answer(200, f"{XML}<{name}>{where}<UploadId>{upload}</UploadId></{name}>".encode())
        parts = [part for _, part in sorted(self.server.uploads.pop(self.query["uploadId"]).items())]
        whole = parts[0].checksum
        for part in parts[1:]:
            whole = combine_crc64nvme(whole, part.checksum, part.size)
        self._compare(whole)
        etag, name = self.server.keep(self.key, parts).etag, "CompleteMultipartUploadResult"
        return self._answer(200, f"{XML}<{name}>{where}<ETag>{escape(etag)}</ETag></{name}>".encode())

    def _delete(self) -> None:
        self.server.uploads.pop(self.query.get("uploadId", ""), None)
        self.server.objects.pop(self.key, None)
        self._answer(204)

    def _head(self) -> None:
        if "/" not in self.key:
            return self._answer(200)
        stored = self._stored(self.key)
        return self._answer(200, headers={"Content-Length": str(stored.size), **_described(stored)})

    def _get(self) -> None:
        if "/" not in self.key:
            return self._list()
        stored = self._stored(self.key)
        if not stored.is_kept:
            raise Refused(404, "NoSuchKey")
        start, end, size = 0, stored.size, stored.size
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or size) + 1, size)
            if start >= size:
                raise Refused(416, "InvalidRange")
        self.send_response_only(206 if wanted else 200)
        ranged = {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if wanted else {}
        for name, value in {"Content-Length": str(end - start), **ranged, **_described(stored)}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in stored.pieces(start, end):
            self.wfile.write(piece)
        return None

    def _list(self) -> None:
        """`ListObjectsV2`, one page; the token is the last key or prefix of the page before."""
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after = self.query.get("continuation-token", self.query.get("start-after", ""))
        most = int(self.query.get("max-keys", 1000))
        below = f"{self.key}/"
        found: dict[str, Stored | None] = {}
        for path in sorted(self.server.objects):
            key = path.removeprefix(below)
            if path.startswith(below) and key.startswith(prefix):
                folder, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                found[prefix + folder + cut if cut else key] = None if cut else self.server.objects[path]
        names = [name for name in found if name > after]
        cut_short = len(names) > most
        lines = [f"<Name>{self.key}</Name><IsTruncated>{str(cut_short).lower()}</IsTruncated>"]
        if cut_short:
            lines.append(f"<NextContinuationToken>{escape(names[most - 1])}</NextContinuationToken>")
        lines += [_listed(name, found[name]) for name in names[:most]]
        self._answer(200, f"{XML}<ListBucketResult>{''.join(lines)}</ListBucketResult>".encode())

    def _body(self) -> Body:
        """Receive the request's body.

        Raises:
            Refused: when it is not what its checksum says.
        """
        size = int(self.headers.get("x-amz-decoded-content-length") or self.headers.get("Content-Length") or 0)
        discards = self.key.partition("/")[0] == DISCARDED and size >= LARGE_BYTES
        data = None if discards else memoryview(bytearray(size))
        checksum, received = 0, 0
        for length in self._lengths(size):
            end = received + length
            while received < end:
                target = self.chunk if data is None else data[received : received + CHUNK_BYTES]
                target = target[: end - received]
                received += self.rfile.readinto(target)  # type: ignore[attr-defined]
                checksum = crc64nvme(target, checksum)
        if self.command == "PUT":
            self._compare(checksum)
        return Body(size, checksum, data)

    def _lengths(self, size: int) -> Iterator[int]:
        """How many bytes of the body follow one another; what stands between them is read here."""
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            yield size
            return
        while length := int(self.rfile.readline().partition(b";")[0], 16):
            yield length
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def _compare(self, checksum: int) -> None:
        named = int.from_bytes(base64.b64decode(self.headers.get(CHECKSUM, "")))
        if named and named != checksum:
            raise Refused(400, "BadDigest")


def _described(stored: Stored) -> dict[str, str]:
    return {"ETag": stored.etag, "Last-Modified": formatdate(0, usegmt=True), "Accept-Ranges": "bytes"}


def _listed(name: str, stored: Stored | None) -> str:
    if stored is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    about = f"<Size>{stored.size}</Size><ETag>{escape(stored.etag)}</ETag><LastModified>{MODIFIED}</LastModified>"
    return f"<Contents><Key>{escape(name)}</Key>{about}<StorageClass>STANDARD</StorageClass></Contents>"


if __name__ == "__main__":
    sink = Sink(int(sys.argv[1]))
    sink.serve_forever()
