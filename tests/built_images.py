"""The images that `make images` has built, for tests that run containers."""

import os
import subprocess

import pytest
from convergate.components.images import LIGHT_IMAGE, TORCH_IMAGE

UNPRIVILEGED = (
    *("--read-only", "--tmpfs", "/tmp", "--user", "65532:65532"),  # noqa: S108 - in the container
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)
"""Of `docker run`, what the manifests demand of every pod."""


def built_images() -> tuple[str, str]:
    """The names of the light image and of that with torch; where they are not, skip, or fail under CI=true."""
    found = docker("image", "inspect", LIGHT_IMAGE, TORCH_IMAGE)
    if found.returncode:
        reason = f"{found.stderr.strip()} → make images"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return LIGHT_IMAGE, TORCH_IMAGE


def run_in(image: str, *command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command in an image as a restricted pod would, without a network."""
    return docker("run", "--rm", "--network", "none", *UNPRIVILEGED, "--interactive", image, *command, stdin=stdin)


def docker(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run docker to its end."""
    return subprocess.run(["docker", *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=120)
