"""A stand-in for the API of Kubeflow Pipelines over real HTTP: keeps what it is sent, checks tokens, fails to order.

It refuses what the real one refuses: a pipeline with a field that its messages have not, no namespace on a server for
many users (and any on one for one user, which the real one overlooks), a second experiment of a name, a cron expression
with too few fields, a description that its database has no room for. A schedule that is deleted takes its runs with it.
"""

import base64
import gzip
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec import pipeline_spec_pb2
from tls import certified

Node = dict[str, Any]
GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}
"""The code of gRPC that stands in the body of an answer beside the HTTP one."""
DESCRIPTION_CHARACTERS = 255
DROP, DROP_AFTER, LATE, LOGIN_PAGE = "drop", "drop after it was done", "drop, and done a look later", "login page"


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What goes wrong with the next calls of a kind."""

    method: str
    path: str
    what: int | str
    times: int = 1


@dataclass
class KfpApi:
    """The server's state; tests read it, and say what becomes of runs."""

    token: str | None = None
    namespace: str | None = None
    """Of the one caller that a server for many users knows; None is a server for one user."""
    url: str = ""
    experiments: list[Node] = field(default_factory=list)
    runs: list[Node] = field(default_factory=list)
    recurring_runs: list[Node] = field(default_factory=list)
    script: list[Node] = field(default_factory=list)
    """What a run is at each look; the last one stays."""
    faults: list[Fault] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    looks: int = 0
    nodes: dict[str, Node] = field(default_factory=dict)
    """Of the Workflow of a run: its states where those of the tasks are no longer told."""
    in_flight: list[tuple[str, str, Node]] = field(default_factory=list)
    """Calls that nobody waits for any more, done after the next look at their path."""
    log: list[tuple[str, str]] = field(default_factory=list)
    """What was done to recurring runs, in order."""
    lost: list[Node] = field(default_factory=list)
    """Runs that went on when their recurring run was deleted, and did not after that."""

    def handle(self, method: str, path: str, query: dict[str, str], body: Node) -> Node:
        """The answer of the API itself."""
        if path == "/apis/v2beta1/healthz":
            return {"multi_user": True} if self.namespace else {}
        if path.startswith("/apis/v1beta1/runs/"):
            packed = base64.b64encode(gzip.compress(json.dumps(self.nodes).encode())).decode()
            return {"pipeline_runtime": {"workflow_manifest": json.dumps({"status": {"compressedNodes": packed}})}}
        match = re.fullmatch(r"/apis/v2beta1/(experiments|runs|recurringruns)(/([^:]+))?(:(\w+))?", path)
        if match is None:
            raise RefusedError(404, "Not Found")
        kind, identity, verb = match[1], match[3], match[5]
        if kind == "experiments":
            return self._experiments(method, query, body)
        if kind == "runs":
            return self._runs(method, identity, query, body)
        return self._recurring_runs(method, identity, verb, query, body)

    def catch_up(self, method: str, path: str) -> None:
        """Do what was still in flight, after a look."""
        for late in [late for late in self.in_flight if method == "GET" and late[1] == path]:
            self.in_flight.remove(late)
            self.handle(late[0], path, {}, late[2])

    def _experiments(self, method: str, query: dict[str, str], body: Node) -> Node:
        given = query.get("namespace") if method == "GET" else body.get("namespace")
        if bool(given) != bool(self.namespace):
            raise RefusedError(400, "Invalid input error: a namespace is for multi-user mode, and needed there")
        if given != self.namespace:
            raise RefusedError(403, f"User is not authorized in namespace {given}")
        if method == "GET":
            return {"experiments": _listed(self.experiments, query)} if self.experiments else {}
        if any(one["display_name"] == body["display_name"] for one in self.experiments):
            raise RefusedError(409, "Already exist error")
        self.experiments.append({**body, "experiment_id": str(uuid.uuid4())})
        return self.experiments[-1]

    def _runs(self, method: str, identity: str | None, query: dict[str, str], body: Node) -> Node:
        if method == "POST":
            _check(body)
            self.runs.append({**body, "run_id": str(uuid.uuid4()), "state": "PENDING"})
            return self.runs[-1]
        if identity is None:
            return {"runs": _listed(self.runs, query)}
        found = next((run for run in self.runs if run["run_id"] == identity), None)
        if found is None:
            raise RefusedError(404, "Run not found")
        now = self.script[min(self.looks, len(self.script) - 1)] if self.script else {}
        self.looks += 1
        return {**found, **now}

    def _recurring_runs(
        self, method: str, identity: str | None, verb: str | None, query: dict[str, str], body: Node
    ) -> Node:
        if method == "POST" and identity is None:
            _check(body)
            cron = body["trigger"]["cron_schedule"]["cron"]
            if len(cron.split()) not in (5, 6):
                raise RefusedError(400, "Invalid input error: Schedule cron is not a supported format")
            status = "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"
            self.recurring_runs.append({**body, "recurring_run_id": str(uuid.uuid4()), "status": status})
            self.log.append(("create", self.recurring_runs[-1]["recurring_run_id"]))
            return self.recurring_runs[-1]
        if identity is None:
            return {"recurringRuns": _listed(self.recurring_runs, query)}
        found = next((run for run in self.recurring_runs if run["recurring_run_id"] == identity), None)
        if found is None:
            raise RefusedError(404, f"RecurringRun {identity} not found")
        self.log.append((verb or method.lower(), identity))
        if method == "DELETE":
            self.recurring_runs.remove(found)
            self.lost += [run for run in self.runs if run.get("recurring_run_id") == identity and _goes_on(run)]
        else:
            found["status"] = {"enable": "ENABLED", "disable": "DISABLED"}[str(verb)]
        return {}


def steps(state: str = "RUNNING", **states: str) -> Node:
    """What a run is, as KFP tells it: drivers, branches, attempts and pods of steps beside the steps, in no order.

    What was left out has no state.
    """
    details = [("root-driver", "SUCCEEDED"), ("root", "RUNNING"), ("root(0)", "RUNNING"), ("exit-handler-1", "RUNNING")]
    for name, at in states.items():
        step = name.replace("_", "-")
        details += [(f"{step}-driver", "SUCCEEDED"), (f"{step}-driver(0)", "SUCCEEDED"), (f"{step}(0)", at), (step, at)]
        details += [("executor", at), ("executor(0)", at), ("condition-2", "SKIPPED"), ("stop-2-driver", "")]
    tasks = [{"task_id": str(number), "display_name": name, "state": at} for number, (name, at) in enumerate(details)]
    return {"state": state, "run_details": {"task_details": [
        {key: value for key, value in task.items() if value} for task in reversed(tasks)
    ]}}  # fmt: skip


@contextmanager
def kfp_api(*, certificate: Path | None = None, **settings: Any) -> Iterator[KfpApi]:
    """A server on loopback; with a certificate of its own, written to a file, where one is named."""
    api = KfpApi(**settings)

    class Handler(_Handler):
        state = api

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        server.socket = certified(certificate).wrap_socket(server.socket, server_side=True)
    api.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listed(nodes: list[Node], query: dict[str, str]) -> list[Node]:
    """Those of an experiment that a filter lets through, in one page."""
    found = nodes[::-1] if query.get("sort_by") == "created_at desc" else nodes
    if experiment := query.get("experiment_id"):
        found = [node for node in found if node["experiment_id"] == experiment]
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        operation, key = predicate["operation"], predicate["key"]
        assert (operation, key) in {("EQUALS", "display_name"), ("EQUALS", "recurring_run_id"), ("NOT_EQUALS", "state")}
        is_wanted = operation == "EQUALS"
        found = [node for node in found if (node.get(key) == predicate["string_value"]) == is_wanted]
    return found


def _goes_on(run: Node) -> bool:
    return run.get("state") not in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def _check(body: Node) -> None:
    """The pipeline is read strictly, as the server reads it, its inputs are there, and the database has room."""
    try:
        spec = json_format.ParseDict(body["pipeline_spec"]["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
        platform = body["pipeline_spec"]["platform_spec"]
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(pod, KubernetesExecutorConfig())
    except json_format.ParseError as error:
        raise RefusedError(500, f"InternalServerError: pipeline spec is invalid: {error}") from error
    if len(body["description"]) > DESCRIPTION_CHARACTERS:
        raise RefusedError(
            500, "InternalServerError: Error 1406 (22001): Data too long for column 'Description' at row 1"
        )
    parameters = body["runtime_config"]["parameters"]
    inputs = spec.root.input_definitions.parameters
    missing = [name for name, one in inputs.items() if not one.is_optional and name not in parameters]
    if missing or set(parameters) - set(inputs):
        raise RefusedError(400, f"Invalid input error: parameters {missing} {set(parameters) - set(inputs)}")


class _Handler(BaseHTTPRequestHandler):
    state: KfpApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        self.state.calls.append(f"{method} {parts.path}")
        sent = self.headers.get("Authorization") or ""
        fault = self._fault(method, parts.path)
        if fault == DROP:
            self.close_connection = True
            return
        if fault == LATE:
            self.state.in_flight.append((method, parts.path, body))
            self.close_connection = True
            return
        if fault == LOGIN_PAGE:
            self._send(200, "text/html", b"<html>sign in</html>")
            return
        try:
            if isinstance(fault, int):
                raise RefusedError(fault, f"ordered for the test; you sent {sent}")
            if self.state.token is not None and sent != f"Bearer {self.state.token}":
                raise RefusedError(401, f"Unauthenticated: the token in '{sent}' is not known")
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, answer = 200, self.state.handle(method, parts.path, query, body)
            self.state.catch_up(method, parts.path)
        except RefusedError as refused:
            code, detail = GRPC.get(refused.status, 2), {"@type": "type.googleapis.com/google.rpc.Status"}
            detail |= {"code": code, "message": str(refused).rpartition("Error: ")[2]}
            status, answer = refused.status, {"code": code, "message": str(refused), "details": [detail]}
        if fault == DROP_AFTER:
            self.close_connection = True
            return
        self._send(status, "application/json", json.dumps(answer).encode())

    def _fault(self, method: str, path: str) -> int | str | None:
        for fault in self.state.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault.what
        return None

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
