"""The documents of one run under its prefix: `<root>/runs/<run_id>/<name>.json`, and what lies beside them."""

from typing import TypeVar

from pydantic import ValidationError

from ..config.document import Document
from .errors import AlteredError, S3Error, S3NotFoundError
from .s3 import S3Location, S3Store

AnyDocument = TypeVar("AnyDocument", bound=Document)


class RunStore:
    """Reads and writes what belongs to one run."""

    def __init__(self, root: str, run_id: str, store: S3Store | None = None) -> None:
        self.run_id = run_id
        self.store = store or S3Store()
        self.prefix = S3Location.parse(root) / "runs" / run_id

    def put(self, name: str, document: Document) -> str:
        """Write a document, over that of an earlier attempt of the same step; returns its URI."""
        location = self.prefix / f"{name}.json"
        self.store.write(location, document.to_json(), "application/json")
        return str(location)

    def get(self, name: str, kind: type[AnyDocument]) -> AnyDocument:
        """Read a document.

        Raises:
            S3NotFoundError: when the step that makes it has not run.
            S3Error: when it is of another kind or version.
        """
        location = self.prefix / f"{name}.json"
        data = self.store.read(location)
        try:
            return kind.from_json(data)
        except ValidationError as error:
            raise S3Error(
                f"{location}: not a {kind.__name__} of this version ({error.error_count()} problems)"
                " → read it with the version that wrote it, or run the step again"
            ) from error

    def find(self, name: str, kind: type[AnyDocument]) -> AnyDocument | None:
        """Read a document, or None where the step that makes it has not run."""
        try:
            return self.get(name, kind)
        except S3NotFoundError:
            return None

    def require(self, name: str, document: AnyDocument) -> AnyDocument:
        """The document, where it is the one that stands in the run's prefix.

        On a cluster an artifact between two steps can be written by all that runs in the pipeline, the user's code
        too; into the prefix only by the step that makes it.

        Raises:
            AlteredError: when another stands there, or none.
            S3Error: when S3 fails.
        """
        stored = self.find(name, type(document))
        if stored is None or stored.to_json() != document.to_json():
            found = "there is none" if stored is None else "another stands"
            raise AlteredError(
                f"the {name} that run {self.run_id} was given is not what its step stored: {found} at"
                f" {self.prefix / name}.json → run that step again"
            )
        return document

    def names(self) -> set[str]:
        """The names of the documents there are."""
        depth = len(self.prefix.key) + 1
        found = (location.key[depth:] for location in self.store.list(self.prefix))
        return {name.removesuffix(".json") for name in found if name.endswith(".json") and "/" not in name}
