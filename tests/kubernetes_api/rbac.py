"""Roles, ClusterRoles and their bindings, as the API server reads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
ADMIN = "admin"


@dataclass(frozen=True)
class Request:
    """What a request wants to do."""

    verb: str
    group: str
    resource: str
    """With its subresource: `pods/log`."""
    namespace: str
    name: str = ""

    def denial(self, user: str) -> str:
        """The API server's words."""
        full = f"{self.resource}.{self.group}" if self.group else self.resource
        what = f'{full} "{self.name}"' if self.name else full
        where = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        return (
            f'{what} is forbidden: User "{user}" cannot {self.verb} resource "{self.resource}" in API group'
            f' "{self.group}" {where}'
        )


class Rbac:
    """Who may do what; `admin` may do all."""

    def __init__(self, objects: Iterable[Json] = ()) -> None:
        self._objects = [one for one in objects if one["apiVersion"].startswith("rbac.authorization.k8s.io/")]

    def allows(self, user: str, request: Request) -> bool:
        if user == ADMIN:
            return True
        return any(_covers(rule, request) for rule in self._rules(user, request.namespace))

    def _rules(self, user: str, namespace: str) -> Iterable[Json]:
        roles = {
            (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one for one in self._objects
        }
        for binding in self._objects:
            home = binding["metadata"].get("namespace", "")
            if not binding["kind"].endswith("Binding") or not any(
                _is(subject, user, home) for subject in binding.get("subjects") or []
            ):
                continue
            if binding["kind"] == "RoleBinding" and home != namespace:
                continue
            ref = binding["roleRef"]
            role = roles.get((ref["kind"], home if ref["kind"] == "Role" else "", ref["name"]))
            yield from (role or {}).get("rules") or []


def _is(subject: Json, user: str, home: str) -> bool:
    if subject["kind"] != "ServiceAccount":
        return bool(subject["name"] == user)
    return user == f"system:serviceaccount:{subject.get('namespace') or home}:{subject['name']}"


def _covers(rule: Json, request: Request) -> bool:
    names = rule.get("resourceNames") or []
    return (
        request.verb in rule["verbs"]
        and request.group in rule.get("apiGroups", [])
        and request.resource in rule.get("resources", [])
        and (not names or request.name in names)
    )
