"""By what a run is counted, whatever else is wrong with its config."""

from collections.abc import Callable

import pytest
from convergate.components.config import RunConfig, config_digests
from convergate.components.config.identity import identity
from convergate.components.errors import UserError


def test_a_valid_config_has_its_digests_too(parsed: Callable[..., RunConfig]) -> None:
    config = parsed({"owner.team": "vision", "storage.uri": "s3://bucket/team"})
    digests = config_digests(config)
    found = identity(config.model_dump_json())
    assert found == ("s3://bucket/team", "digits", "digits", "vision", (digests.training, digests.policy), 2.0)
    assert (found.root, found.experiment, found.model, found.team) == found[:4]


def test_a_wrong_config_still_has_its_names() -> None:
    text = "{experiment: 2026, promotion: {model: net}, owner: {team: null}, storage: null}"
    assert identity(text) == ("s3://convergate", "2026", "net", "", ("", ""), 0.0)


def test_a_text_without_names_is_the_users_error() -> None:
    with pytest.raises(UserError, match="names no experiment and promotion.model → convergate validate CONFIG"):
        identity("promotion: {model: net}")
