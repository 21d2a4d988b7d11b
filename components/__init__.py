"""The reusable steps and the engine under them, one package per concern, lowest floor first.

`schedule` < `config` < `task`, `storage` < `checkpoint`, `telemetry` < `data`, `training` < `evaluation`
< `slo` < `promotion`, `report`. A room imports only from lower floors (`[tool.importlinter]`).
"""
