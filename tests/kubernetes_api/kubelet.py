"""Pods that run: each is a process of this machine, with the arguments, mounts and variables that its pod gives it.

Beside the process there is what Job and JobSet would do: a pod that ended by 143 or a lost node is replaced, one that
ended by 1 or 2 fails the job. Time passes at each look at the TrainJob, as in `play`.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from convergate.pipelines.servers import free_port

from .scene import NAMESPACE, Cluster
from .store import Json, Key

_FINAL = (1, 2)
"""Exit codes that the runtime's podFailurePolicy fails the job for."""


class Kubelet:
    """Runs the pods of the namespace's TrainJobs; a context manager that leaves no process behind.

    Args:
        cluster: where they are.
        folder: for mounts and termination messages.
        variables: what ConfigMap and Secret would give the containers.
    """

    def __init__(self, cluster: Cluster, folder: Path, variables: Mapping[str, str]) -> None:
        self.cluster = cluster
        self._api, self._folder, self._variables = cluster.api, folder, dict(variables)
        self._play = cluster.play()
        self._ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}
        """By pod."""
        self.codes: list[int] = []
        """How they ended."""
        self._api.on_look = self._look
        self._api.store.holds = self._holds

    def __enter__(self) -> "Kubelet":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def _look(self, name: str) -> None:
        with self._api.store.lock:
            self._api.store.look()
            job = self._api.store.get(Key("trainjobs.trainer.kubeflow.org", NAMESPACE, name))
            if job is None or job.get("status") or job["metadata"].get("deletionTimestamp"):
                return
            self._play.name = name
            pods = [one for one in self._api.store.list("pods", NAMESPACE) if "place" in one["metadata"]]
            if not pods:
                self._play.pods()
                for place in range(job["spec"]["trainer"]["numNodes"]):
                    self._start(place)
                return
            self._reap(pods)

    def _reap(self, pods: list[Json]) -> None:
        """Take note of what has ended, and do as Job would."""
        for pod in (one for one in pods if one["status"]["phase"] == "Running"):
            name, place = pod["metadata"]["name"], pod["metadata"]["place"]
            code = self.processes[name].poll()
            if code is None:
                continue
            self.codes.append(code)
            message = self._message(name)
            self._play.end(place, code, message.read_text() if message.exists() else "")
            if code in _FINAL:
                return self._play.fail()
            if code:
                self._play.pods(place)
                self._start(place)
        phases = {
            place: self._play.pod(place)["status"]["phase"] for place in {one["metadata"]["place"] for one in pods}
        }
        if set(phases.values()) == {"Succeeded"}:
            self._play.complete()
        return None

    def _start(self, place: int) -> None:
        pod = self._play.pod(place)
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        mounts = {one["mountPath"]: self._mounted(pod, one["name"]) for one in container["volumeMounts"]}
        command = [*container["command"], *container["args"]]
        for path, folder in mounts.items():
            command = [
                part.replace(path, str(folder)) if part.startswith(path) and folder else part for part in command
            ]
        given = {one["name"]: one["value"] for one in container["env"]}
        port = self._ports.setdefault(given["PET_MASTER_ADDR"], free_port())
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            env={
                **{
                    key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE_", "KUBE", "POD_"))
                },
                **self._variables,
                **given,
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
                "CONVERGATE_TERMINATION_LOG": str(self._message(name)),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes[name] = process
        lines = self._api.logs.setdefault(pod["metadata"]["uid"], [])
        threading.Thread(target=_keep, args=(process, lines), daemon=True).start()
        self._play.run(place)

    def _mounted(self, pod: Json, volume: str) -> Path | None:
        """The folder of a ConfigMap's volume; other volumes are left to the machine."""
        found = next(one for one in pod["spec"]["volumes"] if one["name"] == volume)
        if "configMap" not in found:
            return None
        body = self._api.store.get(Key("configmaps", NAMESPACE, found["configMap"]["name"]))
        assert body is not None
        folder = self._folder / found["configMap"]["name"]
        folder.mkdir(parents=True, exist_ok=True)
        for key, text in body["data"].items():
            (folder / key).write_text(text, newline="")
        return folder

    def _message(self, pod: str) -> Path:
        return self._folder / f"{pod}.message"

    def _holds(self, pod: Json) -> bool:
        """Whether a pod that was deleted is still ending: it gets SIGTERM, and its time."""
        process = self.processes.get(pod["metadata"]["name"])
        if process is None or process.poll() is not None:
            if process is not None:
                self.codes.append(process.returncode)
            return False
        if pod["metadata"]["name"] not in self._ports:
            self._ports[pod["metadata"]["name"]] = 0
            process.send_signal(signal.SIGTERM)
        return True


def _keep(process: "subprocess.Popen[str]", lines: list[tuple[str, str]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        lines.append((stamp, line.rstrip("\n")))
    process.stdout.close()
