"""Several nodes need a launcher for them; where there is none, nothing is started."""

import pytest
from convergate.components.config import parse_config
from convergate.components.errors import UserError
from convergate.components.training.start import Phase, start

from ...two_nodes import config_text, make_job


@pytest.mark.parametrize(("phase", "key"), [("train", "distributed"), ("canary", "canary")])
def test_this_machine_is_one_node(phase: Phase, key: str) -> None:
    text = config_text("s3://absent").replace("launcher: trainjob", "launcher: local") + "canary: {nodes: 2}\n"
    message = rf"{key}\.nodes = 2: this machine is one node → distributed.launcher: trainjob"
    with pytest.raises(UserError, match=message):
        start(parse_config(text), text, [make_job("s3://absent", text, "run")], phase, max_restarts=0)
