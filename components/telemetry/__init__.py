"""The per-step trace and the anomaly detectors.

- `trace`: `TraceWriter` appends in memory and writes Parquet chunks to S3 off the hot path; `read_trace`.
- `detectors`: small classes with one rule each, the same online and over a finished trace.
"""

from .detectors import Detection, detect
from .trace import StepRecord, TraceWriter, read_trace, read_validations

__all__ = ["Detection", "StepRecord", "TraceWriter", "detect", "read_trace", "read_validations"]
