"""The images that the steps run in; one place for their names.

A registry and a tag come from the environment of `convergate compile`, since the IR holds the names.
"""

import os

from .. import __version__

_REGISTRY = os.environ.get("CONVERGATE_REGISTRY", "convergate")
_TAG = os.environ.get("CONVERGATE_TAG", __version__)

LIGHT_IMAGE = f"{_REGISTRY}/steps-python:{_TAG}"
"""Config, data, SLO, promotion and report: no GPU."""
TORCH_IMAGE = f"{_REGISTRY}/train-python:{_TAG}"
"""Canary, training and evaluation."""
