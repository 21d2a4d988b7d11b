"""The DAGs, and what runs them.

- `retrain`, `canary`: the DAGs. `stages`: what they share. `steps`: the ends of a run, which belong to no room.
- `placement`: where steps run on a cluster. `pods`: what each step's pod gets there.
- `compiling`: every pipeline, and every step on its own, as KFP IR YAML.
- `argo`: WorkflowTemplates of the compiled pipelines. `argo_tasks`: their steps in one flat list. `argo_pods`: a
  step's pod.
- `doctor`: what this machine or cluster lacks for a run.
- `kfp_api`: the connection to Kubeflow Pipelines. `submitting`: a run there. `watching`: its end. `recurring`,
  `cron`: on a schedule.
- `local`: a compiled pipeline under kfp.local, in a process of its own.
- `servers`: the embedded S3 and MLflow servers.
- `closing`: the end of a run, whatever happened: its class in the ledger, its report.
- `exit_codes`: the exit code of a run, from its verdicts or from the error that a step raised.
"""
