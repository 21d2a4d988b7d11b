"""What the account of a launching step needs in the cluster; the Role in manifests/ gives it that, and no more."""

from typing import NamedTuple


class Right(NamedTuple):
    """A verb on a resource."""

    verb: str
    group: str
    resource: str
    """With its subresource: `pods/log`."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"

    def attributes(self, namespace: str, runtime: str) -> dict[str, str]:
        """The right as a SubjectAccessReview asks for it."""
        resource, _, subresource = self.resource.partition("/")
        asked = {"verb": self.verb, "group": self.group, "resource": resource}
        if subresource:
            asked["subresource"] = subresource
        if resource == "clustertrainingruntimes":
            return asked | {"name": runtime}
        return asked | {"namespace": namespace}


_TRAINER = "trainer.kubeflow.org"
LAUNCH_RIGHTS = (
    Right("create", _TRAINER, "trainjobs"),
    Right("get", _TRAINER, "trainjobs"),
    Right("delete", _TRAINER, "trainjobs"),
    Right("get", _TRAINER, "trainingruntimes"),
    Right("get", _TRAINER, "clustertrainingruntimes"),
    Right("create", "", "configmaps"),
    Right("get", "", "configmaps"),
    Right("get", "", "pods"),
    Right("list", "", "pods"),
    Right("get", "", "pods/log"),
    Right("list", "", "events"),
)
