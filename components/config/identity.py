"""By what a run is counted, also where its config is wrong: root, experiment and model."""

from typing import NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import UserError
from .digest import config_digests
from .loading import parse_config
from .models import RunConfig, StorageConfig
from .problems import ProblemsError
from .texts import Name, S3Uri

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_URI: TypeAdapter[str] = TypeAdapter(S3Uri)
_UNNAMED = (yaml.YAMLError, ValidationError, ValueError, RecursionError, KeyError, TypeError, AttributeError)
"""What YAML without these names may raise on the way to them."""


class Identity(NamedTuple):
    """What the text of a config says of itself, however wrong the rest is."""

    root: str
    """`storage.uri`, under which the run's documents lie."""
    experiment: str
    model: str
    team: str
    digests: tuple[str, str]
    """Training and policy digest; empty where the config is not valid."""
    budget_hours: float
    """How long its training may take; 0 where the config is not valid."""


def identity(config_text: str) -> Identity:
    """Of a valid config, or of whatever YAML names an experiment and a model.

    Raises:
        UserError: when the text names no experiment or model by which a run could be counted.
    """
    try:
        config = parse_config(config_text)
    except ProblemsError:
        return _named(config_text)
    digests = config_digests(config)
    return Identity(
        config.storage.uri,
        config.experiment,
        config.promotion.model,
        config.owner.team,
        (digests.training, digests.policy),
        config.budget_hours,
    )


def cluster_labels(config: RunConfig, commit: str | None) -> dict[str, str]:
    """What a run's pods and TrainJobs are found by in a cluster: experiment, training digest and commit, shortened."""
    labels = {
        "convergate.io/experiment": config.experiment,
        "convergate.io/config-digest": config_digests(config).training[:16],
        "convergate.io/commit": (commit or "")[:12],
    }
    return {name: value for name, value in labels.items() if value}


def _named(config_text: str) -> Identity:
    try:
        raw = yaml.safe_load(config_text)
        experiment, model = (
            _NAME.validate_python(str(name)) for name in (raw["experiment"], raw["promotion"]["model"])
        )
        root = _URI.validate_python((raw.get("storage") or {}).get("uri", StorageConfig().uri))
        owner = raw.get("owner")
    except _UNNAMED as error:
        raise UserError("the config names no experiment and promotion.model → convergate validate CONFIG") from error
    team = owner.get("team") if isinstance(owner, dict) else None
    return Identity(root, experiment, model, str(team or ""), ("", ""), 0.0)
