"""DataReport: what was expected of the data, what was found, and which data it was."""

import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ..config.document import Document, Verdict

if TYPE_CHECKING:
    import pandas as pd


class ExpectationResult(BaseModel):
    """One expectation over the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    observed: str
    rows: list[int] = []
    """The first rows that fail it, by their position in the table."""
    num_rows: int = 0
    """How many fail it."""
    reason: str = ""


class DataReport(Document):
    """The validation of one table."""

    verdict: Verdict
    expectations: list[ExpectationResult]
    num_rows: int
    rows_by_split: dict[str, int]
    classes_by_split: dict[str, dict[str, int]]
    data_digest: str
    """SHA-256 over the table's columns, types and values; empty where the task gave no table."""
    snapshot: str | None = None

    @property
    def reason(self) -> str:
        """The first failed expectation, in words."""
        return next((f"{e.name}: {e.reason}" for e in self.expectations if not e.passed), "")

    def to_markdown(self) -> str:
        """The expectations as a person reads them in the UI."""
        rows = [
            f"| {e.name} | {'PASS' if e.passed else 'FAIL'} | {e.observed} | {e.reason} |" for e in self.expectations
        ]
        head = [
            f"**{self.verdict}** {self.summary}",
            "",
            "| expectation | verdict | observed | reason |",
            "|---|---|---|---|",
        ]
        digest = ["", f"data digest `{self.data_digest}`"] if self.data_digest else []
        return "\n".join([*head, *rows, *digest]) + "\n"


def data_digest(table: "pd.DataFrame") -> str:
    """SHA-256 over column names, types and values in row order; the same in every process."""
    import numpy as np

    digest = hashlib.sha256()
    for name, column in table.items():
        digest.update(f"{name!r}:{column.dtype}:{len(column)}\n".encode())
        values = column.to_numpy() if isinstance(column.dtype, np.dtype) else None
        if values is not None and values.dtype.kind in "biuf":
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
        else:
            digest.update("".join(f"{value!r}\n" for value in column).encode(errors="surrogatepass"))
    return digest.hexdigest()
