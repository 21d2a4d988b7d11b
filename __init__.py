"""convergate: retrain a PyTorch model, and promote it only when its convergence SLO says so.

`components` holds the reusable steps and the engine under them, `canary` the short run that judges a
config before a GPU is paid for, `pipelines` the DAGs, `cli` the command line.
"""

__version__ = "0.1.0"
