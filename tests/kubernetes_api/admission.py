"""What the cluster refuses to store: unknown and missing fields by the CRDs' own models, and the webhooks' rules.

The rules are those of Kubeflow Trainer's CRD (its CEL expressions and limits) and of its JobSet and torch plugins.
"""

import re
from copy import deepcopy
from typing import Any

from kubeflow_trainer_api import models
from pydantic import ValidationError

Json = dict[str, Any]
TRAINJOBS = "trainjobs.trainer.kubeflow.org"
SINCE_2_2 = ("runtimePatches", "activeDeadlineSeconds")
"""What Trainer 2.1 does not know of a TrainJob's spec."""
MODELS: dict[str, Any] = {
    TRAINJOBS: models.TrainerV1alpha1TrainJob,
    "clustertrainingruntimes.trainer.kubeflow.org": models.TrainerV1alpha1ClusterTrainingRuntime,
    "trainingruntimes.trainer.kubeflow.org": models.TrainerV1alpha1TrainingRuntime,
    "configmaps": models.IoK8sApiCoreV1ConfigMap,
}
_LABEL_NAME = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
_DNS_LABEL = re.compile(r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
_MANAGER = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9/%:@!$&'()*+,;=._~-]+$")
_RESERVED_NAMES = ("dataset-initializer", "model-initializer", "node")
_IMMUTABLE = ("runtimeRef", "initializer", "trainer", "activeDeadlineSeconds", "managedBy")
MAX_ITEMS, MAX_LENGTH = 128, 65536


def schema_problems(resource: str, body: Json) -> list[str]:
    """What the schema says against a body's values; a resource without a model is let through."""
    model = MODELS.get(resource)
    if model is None:
        return []
    try:
        model.from_dict(body).to_dict()
    except ValidationError as error:
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    except (KeyError, TypeError) as error:
        return [f"Required value: {error}"]
    return []


def unknown_fields(resource: str, body: Json, *, old_trainer: bool = False) -> list[str]:
    """Paths of what a valid body has and the schema has not: refused by strict validation, else dropped."""
    model = MODELS.get(resource)
    if model is None:
        return []
    known = model.from_dict(body).to_dict()
    if old_trainer and resource == TRAINJOBS:
        known = pruned(known, [f"spec.{field}" for field in SINCE_2_2])
    return _unknown(body, known, "")


def pruned(body: Json, unknown: list[str]) -> Json:
    """The body without these paths."""
    kept = deepcopy(body)
    for path in unknown:
        *parents, last = path.split(".")
        at: Any = kept
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at.get(part, {})
        at.pop(last, None)
    return kept


def published(*, old_trainer: bool) -> Json:
    """What of the OpenAPI document of Trainer's group is asked for: the fields of a TrainJob's spec."""
    fields = {one.alias or name for name, one in models.TrainerV1alpha1TrainJobSpec.model_fields.items()}
    spec = {"properties": {name: {} for name in fields - set(SINCE_2_2 if old_trainer else ())}}
    schemas = {"org.kubeflow.trainer.v1alpha1.TrainJob": {"properties": {"spec": spec}}}
    return {"openapi": "3.0.0", "components": {"schemas": schemas}}


def _unknown(sent: Any, known: Any, path: str) -> list[str]:
    if isinstance(sent, dict) and isinstance(known, dict):
        found = [f"{path}{key}" for key, value in sent.items() if key not in known and value not in (None, [], {})]
        return found + [one for key in sent if key in known for one in _unknown(sent[key], known[key], f"{path}{key}.")]
    if isinstance(sent, list) and isinstance(known, list):
        return [
            one
            for number, (left, right) in enumerate(zip(sent, known, strict=True))
            for one in _unknown(left, right, f"{path}{number}.")
        ]
    return []


def metadata_problems(resource: str, body: Json) -> list[str]:
    """Names, labels and owners."""
    metadata = body.get("metadata") or {}
    problems = []
    if not _SUBDOMAIN.match(metadata.get("name") or ""):
        problems.append(f"metadata.name: Invalid value: {metadata.get('name')!r}")
    for key, value in (metadata.get("labels") or {}).items():
        if not _LABEL_NAME.match(key) or not _LABEL_VALUE.match(value):
            problems.append(f"metadata.labels: Invalid value: {key}={value!r}")
    for key in metadata.get("annotations") or {}:
        if not _LABEL_NAME.match(key):
            problems.append(f"metadata.annotations: Invalid value: {key!r}")
    for owner in metadata.get("ownerReferences") or []:
        problems += [
            f"metadata.ownerReferences.{key}: Required value" for key in ("kind", "name", "uid") if not owner[key]
        ]
    if resource == "configmaps":
        size = sum(len(value.encode()) for value in (body.get("data") or {}).values())
        problems += ["data: Too long: may not be more than 1048576 bytes"] if size > 1024 * 1024 else []
    return problems


def trainjob_problems(job: Json, runtime: Json | None) -> list[str]:
    """What Trainer's CRD and webhook say against a TrainJob."""
    spec, name = job["spec"], job["metadata"]["name"]
    problems = [] if _DNS_LABEL.match(name) else ["metadata.name must match RFC 1035 DNS label format"]
    if runtime is None:
        return [*problems, f"spec.runtimeRef: Invalid value: {spec['runtimeRef']['name']}: not found"]
    trainer = spec.get("trainer") or {}
    for key in ("command", "args"):
        items = trainer.get(key) or []
        if len(items) > MAX_ITEMS or any(len(item) > MAX_LENGTH for item in items):
            problems.append(f"spec.trainer.{key}: Too many or too long")
    reserved = [one["name"] for one in trainer.get("env") or [] if one["name"].startswith("PET_")]
    if reserved:
        problems.append(f"spec.trainer.env: must not have reserved envs, invalid envs configured: {reserved}")
    if spec.get("activeDeadlineSeconds", 1) < 1:
        problems.append("spec.activeDeadlineSeconds: must be greater than or equal to 1")
    return problems + _patch_problems(spec.get("runtimePatches") or [], runtime)


def _patch_problems(patches: list[Json], runtime: Json) -> list[str]:
    problems = []
    managers = [one["manager"] for one in patches]
    problems += [f"spec.runtimePatches: Duplicate value: {one}" for one in set(managers) if managers.count(one) > 1]
    problems += [f"spec.runtimePatches.manager: Invalid value: {one}" for one in managers if not _MANAGER.match(one)]
    jobs = {one["name"]: one["template"]["spec"]["template"]["spec"] for one in _replicated(runtime["spec"])}
    for job in (one for patch in patches for one in _replicated(patch.get("trainingRuntimeSpec") or {})):
        if job["name"] not in jobs:
            problems.append(
                "spec.runtimePatches: must not have targetJob that doesn't exist in the runtime job template"
            )
            continue
        pod = job.get("template", {}).get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers") or []:
            if container["name"] not in {one["name"] for one in jobs[job["name"]]["containers"]}:
                problems.append(f"must not have container that doesn't exist in the runtime job {job['name']}")
            elif container.get("env") and container["name"] in _RESERVED_NAMES:
                problems.append(f"must not have envs for the {', '.join(_RESERVED_NAMES)} containers")
    return problems


def _replicated(spec: Json) -> list[Json]:
    found: list[Json] = spec.get("template", {}).get("spec", {}).get("replicatedJobs") or []
    return found


def change_problems(resource: str, before: Json, after: Json) -> list[str]:
    """What may not be changed."""
    if resource == "configmaps" and before.get("immutable") and before.get("data") != after.get("data"):
        return ["data: Forbidden: field is immutable when `immutable` is set"]
    if resource == TRAINJOBS:
        return [
            f"spec.{key}: field is immutable" for key in _IMMUTABLE if before["spec"].get(key) != after["spec"].get(key)
        ]
    return []
