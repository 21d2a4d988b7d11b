"""The DAGs, and what runs them.

- `retrain`: the retraining DAG. `steps`: stop and close_run, the steps that belong to no room.
- `compiling`: every pipeline as KFP IR YAML.
- `local`: a compiled pipeline under kfp.local, in a process of its own.
- `servers`: the embedded S3 and MLflow servers.
- `closing`: the end of a run, whatever happened: its class in the ledger, its report.
- `exit_codes`: the exit code of a run, from its verdicts or from the error that a step raised.
"""
