"""Who may do what: the kinds of steps, each with its own identity and its own places on S3; one place for their names.

Training runs the user's code, so it must not be able to write what others decide by. A kind is a service account
`convergate-<kind>` and a Secret `convergate-s3-<kind>` (or a cloud role of the account instead); its S3 policy in
`manifests/s3/<kind>.json` is made from the table below. It is by kind and not by run: the training of one run can
overwrite what the training of another wrote.

A place is `storage/…` or `checkpoints/…`, below the config's `storage.uri` or `checkpoint.uri`; as in IAM, `*` stands
for any characters, slashes too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["ledger", "check", "train", "evaluate", "gate", "promote"]

NAMESPACE = "kubeflow"
"""Of the runs, where nothing names another: that of Kubeflow Pipelines alone."""
WORKER = "convergate-worker"
"""Service account of a TrainJob's pods: the user's code, with no right in the cluster and no token."""
PIPELINE = "convergate-pipeline"
"""The account that KFP runs all pods of a run under; it has one for a run."""
EXECUTOR = "convergate-executor"
"""Argo's own container beside a step reports through this account, so that the step's container needs no token."""
WITHOUT_ACCESS = "convergate-stop"
"""The account of steps that read and write nothing: the red end."""
NAME_LABEL, KIND_LABEL = "app.kubernetes.io/name", "app.kubernetes.io/component"
"""Labels of our pods; the second one's value is the kind, `stop` for a step of none, `worker` for a TrainJob's pods."""
RUNTIME = "convergate-torch"
"""The ClusterTrainingRuntime of the worker pods."""

USER = 65532
"""User and group of our images, and of every pod."""
CONFIG_MAP = "convergate"
S3_SETTINGS = (
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "CONVERGATE_S3_ADDRESSING",
    "CONVERGATE_S3_SSE",
    "CONVERGATE_S3_SSE_KMS_KEY_ID",
)
"""Keys of the ConfigMap, and variables of every step; each is optional."""
MLFLOW_SETTINGS = ("MLFLOW_TRACKING_URI",)
"""Keys of the ConfigMap, and variables of the steps that speak to MLflow."""
RUNTIME_VARIABLE, QUEUE_VARIABLE = "CONVERGATE_RUNTIME", "CONVERGATE_QUEUE"
"""Name another runtime than ours, and the LocalQueue of Kueue's that TrainJobs wait in."""
LAUNCH_SETTINGS = (RUNTIME_VARIABLE, QUEUE_VARIABLE)
"""Keys of the ConfigMap, and variables of the steps that may start a TrainJob."""
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Keys of a kind's Secret; it is optional, since the service account may have a cloud role instead."""
MLFLOW_SECRET = "convergate-mlflow"  # noqa: S105 - a name
MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Keys of the Secret for MLflow, each optional."""

POD_VARIABLE, NAMESPACE_VARIABLE = "POD_NAME", "POD_NAMESPACE"
"""This pod and its namespace, by the downward API; of steps that have to find their own pod."""
LAUNCHER_VARIABLE = "CONVERGATE_LAUNCHER"
"""What a compiled step was made for, `local` or `trainjob`: its pod has the rights and the GPU for that one alone."""
CONFIG_FOLDER, CONFIG_KEY = "/etc/convergate", "config.yaml"
"""Where a run's config is mounted, and its key in its ConfigMap."""
DIGEST_CHARACTERS = 16
"""Of a config's SHA-256, in names and labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a kind of step is, and the places that its code reads, writes and deletes; it lists where it reads."""

    steps: tuple[str, ...]
    """Names of the steps in the DAG."""
    launches: bool = False
    """Whether a step of the kind may start a TrainJob, and so speaks to the cluster's API."""
    mlflow: bool = False
    """Whether a step of the kind speaks to MLflow."""
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    deletes: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()
    """Where multipart uploads may have to be aborted."""


ACCESS: Mapping[Kind, Access] = MappingProxyType(
    {
        "ledger": Access(
            steps=("open_run", "close_run"),
            mlflow=True,
            reads=("storage/ledger/*", "storage/runs/*"),
            writes=("storage/ledger/*", "storage/runs/*/config.yaml", "storage/runs/*/report.html"),
        ),
        "check": Access(
            steps=("validate_config", "validate_data", "find_champion"),
            # The last two: what `training.init_from` names.
            reads=(
                "storage/runs/*/plan.json",
                "storage/runs/*/champion.json",
                "storage/champions/*",
                "storage/releases/*",
                "checkpoints/*",
            ),
            writes=("storage/runs/*/plan.json", "storage/runs/*/data.json", "storage/runs/*/champion.json"),
        ),
        "train": Access(
            steps=("canary", "train"),
            launches=True,
            reads=(
                "storage/runs/*/plan.json",
                "storage/runs/*/canary.json",
                "storage/runs/*/canary/*",
                "storage/runs/*/training.json*",
                "storage/releases/*",
                "checkpoints/*",
            ),
            writes=(
                "storage/runs/*/canary.json",
                "storage/runs/*/canary/*",
                "storage/runs/*/training.json*",
                "storage/runs/*/trace/*",
                "checkpoints/*",
            ),
            deletes=("storage/runs/*/canary/*", "checkpoints/*"),
            uploads=("storage/runs/*/canary/*", "checkpoints/*"),
        ),
        "evaluate": Access(
            steps=("evaluate",),
            reads=(
                "storage/runs/*/training.json",
                "storage/runs/*/champion.json",
                "storage/runs/*/evaluation.json",
                "storage/releases/*",
                "checkpoints/*",
            ),
            writes=("storage/runs/*/evaluation.json",),
        ),
        "gate": Access(
            steps=("gate",),
            reads=(
                "storage/ledger/*",
                "storage/runs/*/plan.json",
                "storage/runs/*/training.json",
                "storage/runs/*/evaluation.json",
                "storage/runs/*/decision.json",
            ),
            writes=("storage/runs/*/decision.json",),
        ),
        "promote": Access(
            steps=("promote",),
            mlflow=True,
            reads=(
                "storage/runs/*/decision.json",
                "storage/runs/*/promotion.json",
                "storage/runs/*/decisions/*",
                "storage/champions/*",
                "storage/releases/*",
                "checkpoints/*",
            ),
            writes=(
                "storage/runs/*/promotion.json",
                "storage/runs/*/decisions/*",
                "storage/champions/*",
                "storage/releases/*",
            ),
            uploads=("storage/releases/*",),
        ),
    }
)
"""Every kind. validate_data, canary, train, evaluate and promote import the user's task, and two of their kinds write
what others rely on: validate_data shares its own with the plan, and promote imports the task to export its model."""


def kind_of(step: str) -> Kind:
    """The kind of a step of the DAG.

    Raises:
        KeyError: when it has none.
    """
    return {name: kind for kind, access in ACCESS.items() for name in access.steps}[step]


def service_account(kind: Kind) -> str:
    """The account that a kind's pods run under where each has its own (Argo)."""
    return f"convergate-{kind}"


def s3_secret(kind: Kind) -> str:
    """The Secret with a kind's S3 keys, `S3_KEYS`."""
    return f"convergate-s3-{kind}"


def config_map_name(config_digest: str) -> str:
    """The ConfigMap of a run's config, by the SHA-256 of its text; so it never has to change."""
    return f"convergate-config-{config_digest[:DIGEST_CHARACTERS]}"


def settings(kind: Kind) -> tuple[str, ...]:
    """The keys of the ConfigMap that a kind's steps take as variables."""
    access = ACCESS[kind]
    return S3_SETTINGS + MLFLOW_SETTINGS * access.mlflow + LAUNCH_SETTINGS * access.launches


def pod_labels(kind: Kind | None) -> dict[str, str]:
    """The labels of a kind's pods, which network policies select by; None is a step of no kind."""
    return {NAME_LABEL: "convergate", KIND_LABEL: kind or "stop"}


def policy(kind: Kind, storage: str = "s3://convergate", checkpoints: str = "") -> dict[str, Any]:
    """The IAM policy of a kind, for AWS, MinIO and others that read such documents.

    Listing is allowed where reading is: without it S3 answers 403, and not 404, for an object that is not there.
    Buckets are not created: that is the administrator's.

    Args:
        kind: Of step.
        storage: `storage.uri` of the configs.
        checkpoints: `checkpoint.uri` of the configs; empty is `checkpoints` below the other.
    """
    access = ACCESS[kind]
    places = {"storage": _key(storage), "checkpoints": _key(checkpoints or f"{storage.rstrip('/')}/checkpoints")}

    def keys(patterns: tuple[str, ...]) -> list[str]:
        return sorted(f"{places[place]}/{rest}" for place, _, rest in (one.partition("/") for one in patterns))

    statements = [_list(key_patterns) for key_patterns in _by_bucket(keys(access.reads)).items()]
    for sid, action, patterns in (
        ("Read", "s3:GetObject", access.reads),
        ("Write", "s3:PutObject", access.writes),
        ("Delete", "s3:DeleteObject", access.deletes),
        ("AbortUploads", "s3:AbortMultipartUpload", access.uploads),
    ):
        if patterns:
            resources = [f"arn:aws:s3:::{key}" for key in keys(patterns)]
            statements.append({"Sid": sid, "Effect": "Allow", "Action": [action], "Resource": resources})
    return {"Version": "2012-10-17", "Statement": statements}


def _key(uri: str) -> str:
    scheme, _, rest = uri.rstrip("/").partition("://")
    assert scheme == "s3", uri
    return rest


def _by_bucket(keys: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in keys:
        bucket, _, pattern = key.partition("/")
        found.setdefault(bucket, []).append(pattern)
    return found


def _list(of_bucket: tuple[str, list[str]]) -> dict[str, Any]:
    bucket, patterns = of_bucket
    name = "".join(part.capitalize() for part in bucket.replace(".", "-").split("-"))
    return {
        "Sid": f"List{name}",
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}"],
        "Condition": {"StringLike": {"s3:prefix": patterns}},
    }
