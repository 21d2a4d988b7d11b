"""Write what in manifests/ follows from the code: a policy for each kind of step, and the run configs as ConfigMaps.

`python manifests/generate.py` writes them; with `--check` it exits 1 and names those that are not what it would write.
`--storage s3://models/team-a --into FOLDER` writes the policies for another place into a folder of yours.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from convergate.components.access import ACCESS, CONFIG_KEY, config_map_name, policy
from convergate.components.config import parse_config

HERE = Path(__file__).resolve().parent
RUN_CONFIGS = HERE / "base" / "run-configs.yaml"
HEADING = """\
# Written by manifests/generate.py from manifests/configs/: change those, then `make docs`.
# Immutable, and named by the SHA-256 of their text, so that a run's config is what its name says; the launcher of a
# TrainJob finds the config of its run under the same name, or makes it. Argo takes them as parameters by the label.
"""


def policies(folder: Path, storage: str = "s3://convergate", checkpoints: str = "") -> dict[Path, str]:
    """A policy for each kind, by its place."""
    return {folder / f"{kind}.json": json.dumps(policy(kind, storage, checkpoints), indent=2) + "\n" for kind in ACCESS}


def files() -> dict[Path, str]:
    """What there should be, by its place."""
    return {**policies(HERE / "s3"), RUN_CONFIGS: HEADING + "---\n".join(map(_dumped, run_configs()))}


def run_configs() -> list[dict[str, Any]]:
    """A ConfigMap for each config in manifests/configs."""
    return [_config_map(path.read_text(encoding="utf-8")) for path in sorted((HERE / "configs").glob("*.yaml"))]


def _config_map(text: str) -> dict[str, Any]:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map_name(digest),
            "labels": {
                "workflows.argoproj.io/configmap-type": "Parameter",
                "convergate.io/experiment": parse_config(text).experiment,
            },
        },
        "immutable": True,
        "data": {CONFIG_KEY: text},
    }


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _dumped(value: dict[str, Any]) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def main() -> int:
    """Write the files, or compare them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something differs")
    parser.add_argument("--storage", metavar="URI", default="s3://convergate", help="storage.uri of the configs")
    parser.add_argument("--checkpoints", metavar="URI", default="", help="checkpoint.uri; by default below the other")
    parser.add_argument("--into", metavar="FOLDER", type=Path, help="write the policies there, and nothing else")
    options = parser.parse_args()
    if options.into is not None:
        _write(policies(options.into, options.storage, options.checkpoints))
        return 0
    wanted = files()
    unknown = {path for path in (HERE / "s3").glob("*.json") if path not in wanted}
    different = {path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    if options.check:
        for path in sorted(different | unknown):
            print(f"{path.relative_to(HERE.parent)} is not what it would be → make docs", file=sys.stderr)  # noqa: T201
        return 1 if different or unknown else 0
    _write({path: wanted[path] for path in different})
    for path in unknown:
        path.unlink()
    return 0


def _write(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
