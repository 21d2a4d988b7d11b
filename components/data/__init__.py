"""Data validation: Great Expectations over the task's table, before anything is paid for.

- `expectations`: the suite `default`, and the derived columns that it is about.
- `validate`: `validate_table`, `validate_data`.
- `report`: `DataReport`, with the data's digest.
"""

from .report import DataReport, ExpectationResult, data_digest

__all__ = ["DataReport", "ExpectationResult", "data_digest"]
