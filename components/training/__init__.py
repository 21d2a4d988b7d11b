"""Training: a plain loop, launched over processes, watched by a sync guard.

- `train`: `run_training`, what the step and the command line call.
- `start`: the processes of a run, where its config wants them: here, or on the nodes of a TrainJob.
- `launch`: torchrun's launcher as a child that dies with its parent, and is interrupted with it.
- `trainjob`: the launch of a TrainJob, which is followed to its end.
- `node`: what a pod of a TrainJob runs: `launch`, with the other nodes.
- `rendezvous`: where the nodes meet.
- `agent`: torchrun's agent, which leaves why it ended.
- `watch`: ends an agent that waits for nobody.
- `notes`: what workers and agent leave for `launch`.
- `lifetime`: a process that dies with its parent.
- `worker`: what each process runs: set up, restore, loop, report.
- `session`: model, optimizer, schedule, data and checkpoints of one process.
- `saving`: begin a checkpoint, and wait for it.
- `resume`: go on from the newest checkpoint that is whole.
- `rollback`: go back to a stable one after a divergence.
- `throttle`: an upload gives way to the training.
- `parallel`: the model over all processes, by DDP or FSDP2.
- `initial_weights`: begin with the weights of a checkpoint.
- `random_state`: all random states of one process.
- `loop`: the loop.
- `progress`: what the loop saw, over all attempts.
- `sync_guard`: ranks agree before step 0, on every step's rate, and on replicas.
- `data_order`: which samples a rank sees at a step, from the seed and the step alone.
- `result`: `TrainingResult`.
"""

from .result import Event, TrainingResult

__all__ = ["Event", "TrainingResult"]
