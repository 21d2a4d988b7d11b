"""Build the images of the steps, and tell what is large in them: `make images [BASE=…] [EXTRA_INDEX_URL=…]`.

It needs docker and nothing installed. The names are those of `components/images.py`: CONVERGATE_REGISTRY and
CONVERGATE_TAG change them.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
BASE = "python:3.11-slim-bookworm"
LARGEST = 8
_SIZES = """
import os, sysconfig
site = sysconfig.get_path("purelib")
for entry in os.scandir(site):
    files = [os.path.join(d, f) for d, _, fs in os.walk(entry) for f in fs] if entry.is_dir() else [entry.path]
    print(sum(os.lstat(f).st_size for f in files), entry.name)
"""


def main() -> int:
    """Build both images; returns docker's exit code where it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=BASE, help=f"the image to build on; {BASE} unless given")
    parser.add_argument("--extra-index-url", default="", help="a second package index, for another build of torch")
    options = parser.parse_args()
    for image in _names():
        try:
            build(image, options.base, options.extra_index_url)
        except subprocess.CalledProcessError as error:
            print(
                error.stdout, f"{image}: not built, docker ended with {error.returncode} → see above", file=sys.stderr
            )
            return error.returncode
        tell(image, options.base)
    return 0


def build(image: str, base: str, extra_index_url: str) -> None:
    """Build one image; its target is the last part of its name."""
    arguments = {
        "BASE": base,
        "COMMIT": _commit(),
        "CONFIG_SCHEMA": _config_schema(),
        "EXTRA_INDEX_URL": extra_index_url,
        "IMAGE": image,
        "VERSION": _package().__version__,
    }
    target = image.rpartition("/")[2].partition(":")[0]
    command = ["docker", "build", "--network", "host", "--file", "manifests/images/Dockerfile", "--target", target]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    print(f"{image}: building; minutes the first time", file=sys.stderr)
    subprocess.run(
        [*command, "--tag", image, "."],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tell(image: str, base: str) -> None:
    """Print an image's size, what it adds to its base, and its largest packages, in megabytes (10⁶ bytes)."""
    size, below = (int(_docker("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, base))
    print(f"{image}  {size / 1e6:,.0f} MB, {(size - below) / 1e6:,.0f} MB above {base}")
    packages = [line.split() for line in _docker("run", "--rm", image, "python", "-c", _SIZES).splitlines()]
    largest = sorted(((int(number), name) for number, name in packages), reverse=True)[:LARGEST]
    print("  " + ", ".join(f"{name} {number / 1e6:,.0f}" for number, name in largest))


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


def _names() -> tuple[str, str]:
    _package()
    from convergate.components.images import LIGHT_IMAGE, TORCH_IMAGE

    return LIGHT_IMAGE, TORCH_IMAGE


def _package() -> ModuleType:
    """The package of this checkout, under its name, without anything installed."""
    if "convergate" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "convergate", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["convergate"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["convergate"]


def _commit() -> str:
    """The commit of the checkout, `-dirty` where it has changes; of CONVERGATE_COMMIT where there is no git."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=40"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    return os.environ.get("CONVERGATE_COMMIT") or described.stdout.strip()


def _config_schema() -> str:
    """The version of the config's schema that the package reads; its models need pydantic to be imported."""
    models = (ROOT / "components/config/models.py").read_text(encoding="utf-8")
    found = re.search(r"schema_version != (\d+)", models)
    assert found, "components/config/models.py compares schema_version with the version that it reads"
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
