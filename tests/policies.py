"""A real S3 server behind a proxy that enforces IAM policies, by access key, as AWS documents them.

`moto_server` looks at the actions of a policy and not at its resources, so what a request needs is worked out here:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html. Signatures are not checked.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Policy = Mapping[str, Any]


class Need(NamedTuple):
    """What a request has to be allowed."""

    action: str
    resource: str
    """`bucket`, or `bucket/key`."""
    prefix: str | None = None
    """The condition key s3:prefix, where the request has it."""


class Use(NamedTuple):
    """A part of a policy that allowed something, or what was refused where there was none."""

    identity: str
    action: str
    pattern: str


def needs(method: str, path: str, headers: Mapping[str, str]) -> list[Need]:
    """The permissions of a request in path style."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    place = unquote(parts.path).lstrip("/")
    bucket, _, key = place.partition("/")
    if not key:
        return [_of_bucket(method, bucket, query)]
    if method in ("GET", "HEAD"):
        action = "s3:ListMultipartUploadParts" if "uploadId" in query else "s3:GetObject"
        return [Need(f"{action}Tagging" if "tagging" in query else action, place)]
    if method == "DELETE":
        return [Need("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", place)]
    found = [Need("s3:PutObjectTagging" if "tagging" in query else "s3:PutObject", place)]
    if source := headers.get("x-amz-copy-source"):
        found.append(Need("s3:GetObject", unquote(source).lstrip("/")))
    if headers.get("If-Match"):
        found.append(Need("s3:GetObject", place))
    return found


def _of_bucket(method: str, bucket: str, query: Mapping[str, list[str]]) -> Need:
    if method == "PUT":
        return Need("s3:CreateBucket", bucket)
    if method in ("GET", "HEAD"):
        names = {"uploads": "s3:ListBucketMultipartUploads", "location": "s3:GetBucketLocation"}
        action = next((action for name, action in names.items() if name in query), "s3:ListBucket")
        return Need(action, bucket, query.get("prefix", [None])[0])
    return Need(f"unknown: {method} of a bucket", bucket)


def allowing(policy: Policy, need: Need) -> list[str]:
    """The resources, or prefixes of a condition, by which a policy allows it; none where it does not."""
    found: list[str] = []
    for statement in policy["Statement"]:
        resources = [one.removeprefix("arn:aws:s3:::") for one in statement["Resource"]]
        matching = [one for one in resources if _like(one, need.resource)]
        condition = statement.get("Condition")
        if need.action not in statement["Action"] or not matching:
            continue
        if condition is None:
            found += matching
        else:
            assert list(condition) == ["StringLike"]
            assert list(condition["StringLike"]) == ["s3:prefix"]
            # A key that the request has not does not match.
            prefixes = condition["StringLike"]["s3:prefix"] if need.prefix is not None else []
            found += [one for one in prefixes if _like(one, str(need.prefix))]
    return found


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)


def _like(pattern: str, text: str) -> bool:
    return _pattern(pattern).fullmatch(text) is not None


class Enforcer(ThreadingHTTPServer):
    """The proxy, on a loopback port of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, upstream: int, policies: Mapping[str, Policy]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.policies = upstream, policies
        self.used: set[Use] = set()
        self.refused: set[Use] = set()
        self.broken = ""
        """A request whose line has this in it fails, as a server's own fault."""
        self._lock = Lock()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def allows(self, identity: str, need: Need) -> bool:
        """Whether an identity's policy allows it; noted."""
        policy = self.policies.get(identity, {"Statement": []})
        found = allowing(policy, need)
        with self._lock:
            if found:
                self.used |= {Use(identity, need.action, pattern) for pattern in found}
            else:
                self.refused.add(Use(identity, need.action, need.resource))
        return bool(found)


@contextmanager
def enforcing(upstream: int, policies: Mapping[str, Policy]) -> Iterator[Enforcer]:
    """The proxy in a thread, in front of the server at this loopback port; policies by access key."""
    with Enforcer(upstream, policies) as enforcer:
        thread = Thread(target=enforcer.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield enforcer
        finally:
            enforcer.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Enforcer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = re.search(r"Credential=([^/,]+)/", self.headers.get("Authorization", ""))
        identity = found[1] if found else "anonymous"
        wanted = needs(self.command, self.path, self.headers)
        if not all(self.server.allows(identity, need) for need in wanted):
            self._refuse(403, "AccessDenied")
            return
        if self.server.broken and self.server.broken in f"{self.command} {self.path}":
            self._refuse(400, "InvalidRequest")
            return
        upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")
            }
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            (need, *_) = wanted
            key = need.resource.partition("/")[2]
            if answer.status == 404 and need.action == "s3:GetObject" and b"NoSuchBucket" not in content:
                # Who may not list is not told that an object is not there.
                bucket = need.resource.partition("/")[0]
                if not self.server.allows(identity, Need("s3:ListBucket", bucket, key)):
                    self._refuse(403, "AccessDenied")
                    return
            self._answer(answer.status, answer.getheaders(), content)
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())
