"""The API of Kubeflow Pipelines: every call has its time, every failure is a line, and the token is in none of them."""

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

from ..components.errors import OutsideError, UserError

CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
PATIENCE_SECONDS = 30.0
"""How long what may be done twice is asked again while the server cannot be reached."""
PAGE, PAGES = 100, 50
NOT_FOUND, INTERNAL_ERROR = 404, 500
_UNAVAILABLE = (429, INTERNAL_ERROR, 502, 503, 504)
_MESSAGE_CHARACTERS = 300
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
"""States of a run or step that has ended."""
_STATES = {"Error": "FAILED", "Omitted": "SKIPPED"}
"""Of Argo's phases, those that Kubeflow Pipelines calls otherwise."""


class PipelinesError(OutsideError):
    """Kubeflow Pipelines cannot be reached, or refused."""

    def __init__(self, text: str, *, transient: bool = False, status: int | None = None) -> None:
        super().__init__(text)
        self.transient = transient
        """Whether the same call may succeed a little later."""
        self.status = status
        """Of HTTP, where the server answered."""


class PipelinesApi:
    """A connection to one server.

    Args:
        host: Its URL; behind Kubeflow's gateway it ends in `/pipeline`.
        token_file: A file with a bearer token, read again for each call: such tokens expire within the hour. Once it
            was read, a file without a token is one that is being written.
        ca_file: The certificates that the server's is signed by; the usual ones where it is None.
        namespace: The caller's, on a server for many users.

    Raises:
        UserError: for a URL that is none, or a file that cannot be read.
    """

    def __init__(
        self,
        host: str,
        *,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        namespace: str | None = None,
    ) -> None:
        import kfp_server_api
        from urllib3 import Retry

        if not _is_url(host):
            raise UserError(f"--host {host or repr(host)}: not a URL → https://…")
        self.host = host.rstrip("/")
        self._token_file, self._wanted_namespace = token_file, namespace
        self._namespace: str | None = None
        self._known = False
        self._sent = ""
        configuration = kfp_server_api.Configuration(host=self.host)
        configuration.retries = Retry(total=3, connect=0, read=0, status=0, other=0)  # redirects alone
        if ca_file is not None:
            if not ca_file.is_file():
                raise UserError(f"--ca-file {ca_file}: no such file → a PEM file")
            configuration.ssl_ca_cert = str(ca_file)
        if token_file is not None:
            self._sent = self._token(token_file)
            configuration.api_key["authorization"] = ""
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = self._refresh
        self._client = kfp_server_api.ApiClient(configuration)
        self._health = kfp_server_api.HealthzServiceApi(self._client)
        self.experiments = kfp_server_api.ExperimentServiceApi(self._client)
        self.runs = kfp_server_api.RunServiceApi(self._client)
        self.recurring_runs = kfp_server_api.RecurringRunServiceApi(self._client)

    @property
    def namespace(self) -> str | None:
        """The namespace to ask for; None on a server for one user, which has but its own.

        Raises:
            UserError: on a server for many users, where none was given.
            PipelinesError: when the server cannot be reached, or is something else.
        """
        if not self._known:
            answer = self.ask(self._health.healthz_service_get_healthz)
            if answer.multi_user and not self._wanted_namespace:
                raise UserError(f"{self.host} serves many users → --namespace, your profile's")
            self._namespace = self._wanted_namespace if answer.multi_user else None
            self._known = True
        return self._namespace

    def experiment(self, name: str) -> str | None:
        """The id of an experiment, or None where there is none of that name."""
        listing = self.ask(
            self.experiments.experiment_service_list_experiments, filter=named(name), **self._in_namespace()
        )
        found = listing.experiments or []
        return str(found[0].experiment_id) if found else None

    def ensure_experiment(self, name: str) -> str:
        """The id of an experiment, which is made where it is missing."""
        import kfp_server_api

        found = self.experiment(name)
        if found is None:
            wanted = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self.namespace)
            made = self.call(self.experiments.experiment_service_create_experiment, experiment=wanted)
            found = self.required(made.experiment_id)
        return found

    def run(self, run_id: str) -> Any:
        """A run, with the states of its steps; asked once."""
        return self.call(self.runs.run_service_get_run, run_id=run_id)

    def nodes(self, run_id: str) -> list[tuple[str, str]]:
        """Name and state of each node of a run's Workflow, as the server last saw it; only its older API tells them."""
        answer = self.call(
            self._client.call_api,
            resource_path=f"/apis/v1beta1/runs/{run_id}",
            method="GET",
            header_params={"Accept": "application/json"},
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
        )
        try:
            status = json.loads(answer["pipeline_runtime"]["workflow_manifest"])["status"]
            packed = status.get("compressedNodes")
            nodes = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status["nodes"]
            return [(node["displayName"], _STATES.get(node["phase"], node["phase"].upper())) for node in nodes.values()]
        except (ValueError, TypeError, KeyError, AttributeError, OSError, EOFError):
            raise self._no_api() from None

    def pages(self, function: Callable[..., Any], field: str, **arguments: Any) -> Iterator[Any]:
        """Everything that a listing gives, of all its pages."""
        token = ""
        for _ in range(PAGES):
            page = self.ask(function, page_size=PAGE, page_token=token, **arguments)
            yield from getattr(page, field) or []
            token = page.next_page_token
            if not token:
                return

    def ask(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call what may be done twice, again and again for `PATIENCE_SECONDS` while the server cannot be reached.

        The first of two calls may have been done, though its answer was lost.
        """
        deadline, pause = monotonic() + PATIENCE_SECONDS, 0.5
        while True:
            try:
                return self.call(function, **arguments)
            except PipelinesError as error:
                if not error.transient or monotonic() + pause > deadline:
                    raise
            sleep(pause)
            pause = min(2 * pause, 5.0)

    def call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call the API once.

        Raises:
            PipelinesError: when the server cannot be reached, refuses, or is something else.
        """
        from kfp_server_api.exceptions import ApiException, OpenApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = function(**arguments, _request_timeout=(CONNECT_SECONDS, READ_SECONDS))
        except ApiException as error:
            failure = self._refused(error, function.__name__)
        except (HTTPError, OSError) as error:
            failure = self._unreachable(_cause(error))
        except (OpenApiException, ValueError, TypeError, AttributeError) as error:
            # The client trips over its own error where TLS failed: that has no body.
            tls = error.__context__
            failure = self._refused(tls, function.__name__) if isinstance(tls, ApiException) else self._no_api()
        else:
            kind = self._client.last_response.getheader("content-type") or ""
            if "json" in kind or answer is None:
                return answer
            failure = self._no_api()
        raise failure  # not chained: what the server said may hold the token that it was sent

    def required(self, identity: str | None) -> str:
        """An id that an answer has to have."""
        if not identity:
            raise self._no_api()
        return identity

    def _in_namespace(self) -> dict[str, str]:
        return {} if self.namespace is None else {"namespace": self.namespace}

    def _token(self, file: Path) -> str:
        try:
            token = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "not text"
            raise UserError(f"--token-file {file}: {cause} → a file with a bearer token") from None
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise UserError(f"--token-file {file}: not a token → one line, nothing else")
        return token

    def _refresh(self, configuration: Any) -> None:
        assert self._token_file is not None
        try:
            self._sent = self._token(self._token_file)
        except UserError as error:
            raise PipelinesError(str(error), transient=True) from None
        configuration.api_key["authorization"] = self._sent

    def _refused(self, error: Any, function: str) -> PipelinesError:
        """What an answer that is no success means; status 0 is a TLS error."""
        if error.status == 0:
            return self._unreachable(_cause(error))
        fixes = {
            401: "a fresh token: --token-file; one of `kubectl create token` needs --audience pipelines.kubeflow.org",
            403: "a right in that namespace for the token's account, or another --token-file",
            404: "check --host: behind Kubeflow's gateway it ends in /pipeline",
            INTERNAL_ERROR: "mend what it names, or try again later",  # also of a pipeline that it cannot read
        }
        fix = fixes.get(error.status, "try again later" if error.status in _UNAVAILABLE else "mend what it names")
        if error.status == NOT_FOUND and not re.search("_list_|_healthz", function):
            fix = "somebody has deleted it"  # the server knew the path, or nothing would have come so far
        text = f"{error.status} {_message(error)} → {fix}"
        return self._error(text, transient=error.status in _UNAVAILABLE, status=error.status)

    def _unreachable(self, cause: str) -> PipelinesError:
        certificate = "certificate" in cause.lower()
        fix = "--ca-file with the certificates it is signed by" if certificate else "check --host and the network"
        return self._error(f"{cause} → {fix}", transient=not certificate)

    def _no_api(self) -> PipelinesError:
        return self._error("what answers is not its API, or a login page → check --host and --token-file")

    def _error(self, text: str, *, transient: bool = False, status: int | None = None) -> PipelinesError:
        line = f"Kubeflow Pipelines at {self.host}: {' '.join(text.split())}"
        if self._sent:
            line = line.replace(self._sent, "[token]")
        return PipelinesError(line, transient=transient, status=status)


def named(name: str) -> str:
    """The filter of a listing for one display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _message(error: Any) -> str:
    """What the server said, in its own words where it said any."""
    try:
        said = str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        said = str(error.reason or "")
    return said[:_MESSAGE_CHARACTERS] + ("…" if len(said) > _MESSAGE_CHARACTERS else "")


def _cause(error: BaseException) -> str:
    """The innermost reason of a failed connection, without addresses of objects."""
    reason = getattr(error, "reason", None) or error
    text = re.sub(r" \(_ssl\.c:\d+\).*", "", str(reason).rpartition(": ")[2])
    return text.strip("()'") or type(reason).__name__
