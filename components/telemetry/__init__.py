"""The per-step trace and the anomaly detectors.

- `trace`: `TraceWriter` appends in memory and writes to S3 off the hot path; `read_trace` and its like.
- `detectors`: small classes with one rule each, the same online and over a finished trace.
"""

from .detectors import Detection, detect
from .trace import StepRecord, TraceWriter, read_events, read_trace, read_validations

__all__ = ["Detection", "StepRecord", "TraceWriter", "detect", "read_events", "read_trace", "read_validations"]
