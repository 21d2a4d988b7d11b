"""Import what the steps import, so that its bytecode is in the image, and of the rest of the packages none.

The root file system is read-only when a step runs: what has no bytecode is compiled at every start. Bytecode of
everything would be a fifth of the image. Kubeflow Pipelines starts a step without its client, and so does this.
"""

import importlib
import importlib.util
import os

STEPS = (
    *(
        "boto3.session",
        "botocore.httpsession",
        "cryptography.hazmat.primitives.asymmetric.ed25519",
        "rich.live",
        "yaml",
    ),
    *("great_expectations", "jinja2", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.datasets"),
    *("kfp.dsl.executor_main", "matplotlib.figure", "matplotlib.backends.backend_svg", "mlflow"),
)
TRAIN = (
    *("kubeflow.trainer", "mlflow.pytorch", "torch.distributed.checkpoint", "torch.distributed.fsdp"),
    *("torch.distributed.run", "torch.export", "torch.nn.parallel", "torch.optim"),
)

os.environ["_KFP_RUNTIME"] = "true"
with_torch = importlib.util.find_spec("torch") is not None
for module in (*STEPS, *(TRAIN if with_torch else ())):
    importlib.import_module(module)
