"""The HTTP side of the stand-in: routes, authentication, authorization, faults, and a record of what was asked."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from . import admission
from .faults import Fault
from .rbac import ADMIN, Rbac, Request
from .store import ConflictError, Json, Key, Store

GROUPS = {
    "trainer.kubeflow.org": "v1alpha1",
    "jobset.x-k8s.io": "v1alpha2",
    "argoproj.io": "v1alpha1",
    "rbac.authorization.k8s.io": "v1",
    "networking.k8s.io": "v1",
    "authorization.k8s.io": "v1",
    "admissionregistration.k8s.io": "v1",
}
_PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)
_DISCOVERY = ("/apis", "/version", "/api", "/api/v1")
"""Anybody may ask; kubectl sends no token over plain HTTP."""
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_REVIEWS = ("selfsubjectaccessreviews", "subjectaccessreviews")


class RefusedError(Exception):
    """An answer with an error status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class ApiServer:
    """The server, on a free port of 127.0.0.1; a context manager.

    Args:
        roles: the objects whose Roles and bindings are enforced.
        without: API groups that are not installed.
    """

    def __init__(self, roles: Iterable[Json] = (), without: Iterable[str] = ()) -> None:
        self.store, self.rbac = Store(), Rbac(roles)
        self.groups: dict[str, tuple[str, ...]] = {
            name: (version,) for name, version in GROUPS.items() if name not in set(without)
        }
        self.old_trainer = False
        """Whether Trainer is 2.1, whose TrainJob lacks some fields."""
        self.faults: list[Fault] = []
        self.logs: dict[str, list[tuple[str, str]]] = {}
        """Lines with their times, by pod."""
        self.asked: list[tuple[str, Request]] = []
        """Each request that was authorized or denied, with its user."""
        self.on_look: Callable[[str], None] = lambda name: None
        """Called with its name before each look at a TrainJob that is there."""
        server = self

        class Handler(_Handler):
            api = server

        self._http = _Http(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def kubeconfig(self, folder: Path, token: str, namespace: str) -> Path:
        """A kubeconfig whose user has this token: `admin`, or `NAMESPACE/SERVICEACCOUNT`."""
        file = folder / f"kubeconfig-{token.replace('/', '-')}"
        body = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": self.url}}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": namespace}}],
        }
        file.write_text(json.dumps(body))
        return file

    def serve(self, group: str, *versions: str) -> None:
        """Install one more API group; the first version is the preferred one."""
        self.groups[group] = versions

    def put(self, resource: str, body: Json, namespace: str = "") -> Json:
        """Store an object as it is."""
        return self.store.create(Key(resource, namespace, body["metadata"]["name"]), body)

    # What requests do; each answers with a body, or raises RefusedError.

    def authorize(self, user: str, request: Request) -> None:
        self.asked.append((user, request))
        if not self.rbac.allows(user, request):
            raise RefusedError(403, "Forbidden", request.denial(user))

    def act(self, user: str, method: str, path: str, query: dict[str, str], body: Json) -> Json | str:
        if path in _DISCOVERY:
            return self._discover(path)
        if path == "/openapi/v3/apis/trainer.kubeflow.org/v1alpha1" and "trainer.kubeflow.org" in self.groups:
            return admission.published(old_trainer=self.old_trainer)
        found = _PATH.match(path)
        group = (found["group"] or "") if found else ""
        if found is None or (group and group not in self.groups):
            raise RefusedError(404, "", "404 page not found")
        plural, name, sub = found["plural"], found["name"] or "", found["sub"]
        if plural in _REVIEWS and method == "POST":
            return self._review(user, plural, body)
        verb = _VERBS.get(method) or ("get" if name else "list")
        named = name or (body.get("metadata") or {}).get("name", "") if verb != "create" else ""
        request = Request(verb, group, "/".join(filter(None, [plural, sub])), found["namespace"] or "", named)
        self.authorize(user, request)
        key = Key(f"{plural}.{group}" if group else plural, found["namespace"] or "", name)
        if verb == "create":
            return self._create(key, query, body)
        return self._list(key, query) if verb == "list" else self._act_on(key, verb, sub, query, body)

    def _act_on(self, key: Key, verb: str, sub: str | None, query: dict[str, str], body: Json) -> Json | str:
        """What is done with one object."""
        if key.resource == "trainjobs.trainer.kubeflow.org" and verb == "get" and self.store.get(key) is not None:
            self.on_look(key.name)
        found = self.store.get(key)
        if found is None:
            raise RefusedError(404, "NotFound", f'{key.resource} "{key.name}" not found')
        if verb == "delete":
            try:
                policy = body.get("propagationPolicy") or "Background"
                return self.store.delete(key, policy, (body.get("preconditions") or {}).get("uid"))
            except ConflictError as error:
                raise RefusedError(409, "Conflict", str(error)) from error
        if verb == "update":
            self._refuse(admission.change_problems(key.resource, found, body), key)
            return self.store.update(key, body)
        return self._log(key, query) if sub == "log" else found

    def _create(self, key: Key, query: dict[str, str], body: Json) -> Json:
        key = Key(key.resource, key.namespace, (body.get("metadata") or {}).get("name") or "")
        problems = admission.schema_problems(key.resource, body)
        if problems:
            raise RefusedError(400, "BadRequest", ", ".join(problems))
        unknown = admission.unknown_fields(key.resource, body, old_trainer=self.old_trainer)
        if unknown and query.get("fieldValidation") == "Strict":
            fields = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise RefusedError(400, "BadRequest", f"{key.resource} cannot be handled: strict decoding error: {fields}")
        body = admission.pruned(body, unknown)
        problems = admission.metadata_problems(key.resource, body)
        if key.resource == "trainjobs.trainer.kubeflow.org":
            body = _defaulted(body)
            problems += admission.trainjob_problems(body, self.runtime(body, key.namespace))
        self._refuse(problems, key)
        try:
            return self.store.create(key, body)
        except KeyError as error:
            raise RefusedError(409, "AlreadyExists", f'{key.resource} "{key.name}" already exists') from error

    def runtime(self, job: Json, namespace: str) -> Json | None:
        """The runtime that a TrainJob names."""
        ref = job["spec"]["runtimeRef"]
        if ref["kind"] == "TrainingRuntime":
            return self.store.get(Key("trainingruntimes.trainer.kubeflow.org", namespace, ref["name"]))
        return self.store.get(Key("clustertrainingruntimes.trainer.kubeflow.org", "", ref["name"]))

    @staticmethod
    def _refuse(problems: list[str], key: Key) -> None:
        if problems:
            raise RefusedError(422, "Invalid", f'{key.resource} "{key.name}" is invalid: {"; ".join(problems)}')

    def _list(self, key: Key, query: dict[str, str]) -> Json:
        if key.resource == "pods":
            self.store.look()
        items = [
            one
            for one in self.store.list(key.resource, key.namespace)
            if _selected(one, query.get("labelSelector", "")) and _matches(one, query.get("fieldSelector", ""))
        ]
        limit = int(query.get("limit") or len(items))
        return {
            "apiVersion": "v1",
            "kind": "List",
            "metadata": {"resourceVersion": self.store.version},
            "items": items[:limit],
        }

    def _log(self, key: Key, query: dict[str, str]) -> str:
        pod = self.store.get(key) or {}
        states = [one.get("state") or {} for one in pod["status"].get("containerStatuses") or []]
        if not any("running" in state or "terminated" in state for state in states):
            name = query.get("container")
            raise RefusedError(
                400, "BadRequest", f'container "{name}" in pod "{key.name}" is waiting to start: ContainerCreating'
            )
        lines = self.logs.get(pod["metadata"]["uid"], [])[-int(query.get("tailLines") or 10**6) :]
        return "".join(f"{time} {line}\n" for time, line in lines)

    def _discover(self, path: str) -> Json:
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.1"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/api/v1":  # what kubectl asks before it makes a pod
            pods = {
                "name": "pods",
                "singularName": "pod",
                "namespaced": True,
                "kind": "Pod",
                "verbs": ["create", "get"],
            }
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [pods]}
        groups = [
            {"name": name, "versions": [{"groupVersion": f"{name}/{one}", "version": one} for one in versions]}
            for name, versions in self.groups.items()
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def _review(self, user: str, plural: str, body: Json) -> Json:
        spec = body["spec"]
        if plural == "subjectaccessreviews":
            self.authorize(user, Request("create", "authorization.k8s.io", plural, ""))
            user = spec["user"]
        wanted = spec["resourceAttributes"]
        resource = "/".join(filter(None, [wanted["resource"], wanted.get("subresource")]))
        request = Request(
            wanted["verb"], wanted.get("group", ""), resource, wanted.get("namespace", ""), wanted.get("name", "")
        )
        return {**body, "status": {"allowed": self.rbac.allows(user, request)}}


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients come and go."""


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        line = f"{self.command} {parts.path}"
        fault = next((one for one in self.api.faults if one.meets(line)), None)
        if fault and fault.drop == "before":
            return self._drop()
        if fault and fault.status:
            return self._answer(fault.status, _status(fault.status, fault.reason, "injected"), fault.headers)
        user = _user(self.headers.get("Authorization") or "")
        try:
            if user is None and parts.path not in _DISCOVERY:
                raise RefusedError(401, "Unauthorized", "Unauthorized")
            answer = self.api.act(user or "system:anonymous", self.command, parts.path, query, body)
        except RefusedError as refused:
            text = _status(refused.code, refused.reason, str(refused)) if refused.reason else str(refused)
            return self._answer(refused.code, text)
        if fault and fault.drop == "after":
            return self._drop()
        return self._answer(201 if self.command == "POST" else 200, answer, cut=bool(fault and fault.drop == "in"))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_request  # noqa: N815 - http.server's names

    def _answer(self, code: int, body: Json | str, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data) + 100 if cut else len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        if cut:
            self._drop()

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        pass


def _user(authorization: str) -> str | None:
    token = authorization.removeprefix("Bearer ")
    if token == ADMIN:
        return ADMIN
    namespace, _, account = token.partition("/")
    return f"system:serviceaccount:{namespace}:{account}" if account else None


def _status(code: int, reason: str, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _defaulted(job: Json) -> Json:
    """What the CRD and the webhook fill in."""
    spec = {"suspend": False, "managedBy": "trainer.kubeflow.org/trainjob-controller", **job["spec"]}
    spec["runtimeRef"] = {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", **spec["runtimeRef"]}
    return {**job, "spec": spec}


def _selected(body: Json, selector: str) -> bool:
    labels = body["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, _, value in (one.partition("=") for one in selector.split(",") if one))


def _matches(body: Json, selector: str) -> bool:
    for one in filter(None, selector.split(",")):
        path, _, wanted = one.partition("=")
        value: Any = body
        for key in path.split("."):
            value = (value or {}).get(key)
        if value != wanted:
            return False
    return True
