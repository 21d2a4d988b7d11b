"""Submit a run to Kubeflow Pipelines."""

import tempfile
from pathlib import Path

from ..components.config import RunConfig
from ..components.errors import OutsideError
from .compiling import compile_pipelines


def submit(config: RunConfig, text: str, host: str, token: str | None = None) -> str:
    """Start the retrain pipeline on a cluster; returns the run's link.

    Raises:
        OutsideError: when the server cannot be reached, or refuses.
    """
    import kfp
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    with tempfile.TemporaryDirectory(prefix="convergate-ir-") as folder:
        file = compile_pipelines(Path(folder))[0]
        try:
            client = kfp.Client(host=host, existing_token=token)
            run = client.create_run_from_pipeline_package(
                str(file),
                arguments={"config": text},
                experiment_name=config.experiment,
                run_name=f"{config.experiment}-{config.promotion.model}",
                enable_caching=False,
            )
        except (ApiException, HTTPError, OSError, RuntimeError) as error:
            cause = str(error).strip().splitlines()[0]
            raise OutsideError(f"Kubeflow Pipelines at {host}: {cause} → check --host and the network") from error
    return f"{host.rstrip('/')}/#/runs/details/{run.run_id}"
