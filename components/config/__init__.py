"""RunConfig: one YAML file is one run's whole truth.

- `models`: the schema, every section; `optimizer`: its optimizer.
- `reading`: the text to plain data: YAML 1.2, within bounds.
- `loading`: plain data to `RunConfig`, every problem at once with its path, value, reason and fix.
- `problems`: what is wrong with a config, as people read it.
- `digest`: canonical JSON, the training and policy digests, the seed of a run.
- `identity`: by what a run is counted, also where its config is wrong.
- `signature`: Ed25519 over the digests.
- `preflight`: what can be said about a run before anything is paid for; `schedule_checks`: of its schedule.
- `document`: the base of the small JSON documents that steps pass on.
"""

from .digest import Digests, config_digests, derive_seed
from .document import Check, Document, Verdict
from .loading import load_config, parse_config
from .models import RunConfig
from .problems import Problem, ProblemsError

__all__ = [
    "Check",
    "Digests",
    "Document",
    "Problem",
    "ProblemsError",
    "RunConfig",
    "Verdict",
    "config_digests",
    "derive_seed",
    "load_config",
    "parse_config",
]
