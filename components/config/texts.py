"""Texts that have to be written in a certain way: names, places, checkpoints."""

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator


def _written_as(pattern: str, rule: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(rule)
        return text

    return check


Name = Annotated[
    str,
    AfterValidator(
        _written_as(
            r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?",
            "not a name → a-z, 0-9 and, between them, `.`, `_`, `-`; at most 63 characters",
        )
    ),
]
S3Uri = Annotated[
    str,
    AfterValidator(
        _written_as(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/\S*)?", "not an S3 location → s3://bucket/prefix")
    ),
]
PIN = "@sha256:"
"""Between the URI of a checkpoint and its digest."""
InitFrom = Annotated[
    str,
    AfterValidator(
        _written_as(
            rf"champion|s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9]/((?!{PIN})\S)+({PIN}[0-9a-f]{{64}})?",
            f"not a checkpoint → champion, or s3://bucket/prefix, pinned by {PIN} and 64 hex digits where it is known",
        )
    ),
]
Factory = Annotated[
    str, AfterValidator(_written_as(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "not a class's place → package.module:Class"))
]
