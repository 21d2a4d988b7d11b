"""What accounts may do in the cluster, asked of its API server itself."""

from typing import NamedTuple

from ...components.access import ACCESS, PIPELINE, RUNTIME, WORKER, service_account
from ...components.training.trainjob.answers import APPLY, DeniedError, MissingError
from ...components.training.trainjob.api import Cluster, Json
from ...components.training.trainjob.rights import LAUNCH_RIGHTS, Right
from .row import Row, examined

FORBIDDEN = (
    Right("create", "trainer.kubeflow.org", "trainjobs"),
    Right("create", "", "pods"),
    Right("get", "", "secrets"),
    Right("create", "rbac.authorization.k8s.io", "rolebindings"),
)
"""What the account of the user's code must not be allowed to."""
_POLICY = "convergate-trainjobs"
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
_RUNTIMES = "clustertrainingruntimes"
_ANOTHER_RUNTIME = (
    "its name in resourceNames of ClusterRole convergate-runtime, and in the admission policy: docs/trainjob.md"
)
_REVIEWS = "/apis/authorization.k8s.io/v1"


class _Asked(NamedTuple):
    right: Right
    allowed: bool


def examine_rights(cluster: Cluster, runtime: str | None, *, trainjobs: bool) -> list[Row]:
    """What this user may do, and the accounts of the steps that launch TrainJobs and of the worker pods.

    Args:
        cluster: the cluster, and the namespace of the runs.
        runtime: the ClusterTrainingRuntime of the TrainJobs; None where it is one of the namespace.
        trainjobs: whether training is to run as TrainJobs.
    """
    if not trainjobs:
        return [examined(f"rights: {WORKER}", lambda: _worker(cluster))]
    launchers = [service_account(kind) for kind, access in ACCESS.items() if access.launches]
    rows = [examined("rights: yours", lambda: _yours(cluster, runtime))]
    for account in [*launchers, PIPELINE]:
        rows.append(examined(f"rights: {account}", lambda account=account: _launcher(cluster, account, runtime)))  # type: ignore[misc]
    rows.append(examined(f"rights: {WORKER}", lambda: _worker(cluster)))
    return rows


def examine_policy(cluster: Cluster, kind: str, name: str) -> Row:
    """Whether the admission policy is there, and lets a step start TrainJobs of this runtime."""
    title = "admission policy"
    try:
        rules = cluster.get(f"{_ADMISSION}/validatingadmissionpolicies/{_POLICY}")["spec"]["validations"]
        binding = cluster.get(f"{_ADMISSION}/validatingadmissionpolicybindings/{_POLICY}")["spec"]
    except DeniedError as error:
        return Row.hidden(title, error, f"kubectl get validatingadmissionpolicy {_POLICY} -o yaml")
    except MissingError:
        figure = "not there: a step's token could start a TrainJob with another kind's Secret"
        return Row.unknown(title, figure, "manifests/components/admission in your overlay")
    if any(f'"{name}"' in rule["expression"] and f'"{kind}"' in rule["expression"] for rule in rules):
        return Row.ok(title, "a step's TrainJob is worker pods of the runtime, and nothing else")
    # A binding of somebody's own may leave this namespace out.
    refused = Row.unknown if binding.get("matchResources") else Row.failed
    fix = "name it in the first rule of manifests/components/admission/policy.yaml: docs/trainjob.md"
    return refused(title, f"it refuses the TrainJobs of {kind} {name}", fix)


def _yours(cluster: Cluster, runtime: str | None) -> Row:
    missing = [asked.right for asked in _ask(cluster, _launching(runtime), None, runtime) if not asked.allowed]
    if not missing:
        return Row.ok("rights: yours", "may launch TrainJobs")
    return Row.unknown(
        "rights: yours", f"may not launch TrainJobs: {_listed(missing)}", "only needed to launch by hand"
    )


def _launcher(cluster: Cluster, account: str, runtime: str | None) -> Row:
    name = f"rights: {account}"
    try:
        asked = _ask(cluster, _launching(runtime), account, runtime)
    except DeniedError:
        return _not_asked(cluster, name)
    missing = [one.right for one in asked if not one.allowed]
    if missing:
        if runtime not in (None, RUNTIME) and [one.resource for one in missing] == [_RUNTIMES]:
            return Row.failed(name, f"may not get {_RUNTIMES} {runtime}", _ANOTHER_RUNTIME)
        return Row.failed(name, f"may not {_listed(missing)}", APPLY)
    return Row.ok(name, f"all {len(asked)} that a launch takes")


def _worker(cluster: Cluster) -> Row:
    name = f"rights: {WORKER}"
    try:
        granted = [one.right for one in _ask(cluster, FORBIDDEN, WORKER, None) if one.allowed]
    except DeniedError:
        return _not_asked(cluster, name)
    if granted:
        where = f"kubectl get rolebindings,clusterrolebindings -A -o wide | grep {WORKER}"
        return Row.failed(name, f"the user's code may {_listed(granted)}", f"take it away: {where}")
    return Row.ok(name, "none of what the user's code must not be allowed to")


def _not_asked(cluster: Cluster, name: str) -> Row:
    account = name.rpartition(" ")[2]
    ask = f"kubectl auth can-i --list --as system:serviceaccount:{cluster.namespace}:{account} -n {cluster.namespace}"
    return Row.unknown(name, "you may not ask for another account (subjectaccessreviews)", f"an administrator: {ask}")


def _launching(runtime: str | None) -> tuple[Right, ...]:
    """What a launch takes; one with a runtime of the namespace does not look further."""
    return tuple(right for right in LAUNCH_RIGHTS if runtime is not None or right.resource != _RUNTIMES)


def _ask(cluster: Cluster, rights: tuple[Right, ...], account: str | None, runtime: str | None) -> list[_Asked]:
    """Ask for each right, of an account, or of this user."""
    answers = []
    for right in rights:
        spec: Json = {"resourceAttributes": right.attributes(cluster.namespace, runtime or RUNTIME)}
        kind = "SelfSubjectAccessReview"
        if account is not None:
            kind = "SubjectAccessReview"
            spec["user"] = f"system:serviceaccount:{cluster.namespace}:{account}"
            spec["groups"] = ["system:serviceaccounts", f"system:serviceaccounts:{cluster.namespace}"]
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        answer = cluster.create(f"{_REVIEWS}/{kind.lower()}s", body)
        answers.append(_Asked(right, bool(answer["status"]["allowed"])))
    return answers


def _listed(rights: list[Right]) -> str:
    return ", ".join(map(str, rights))
