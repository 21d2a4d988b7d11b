"""Where the agents of several nodes meet: torchrun's c10d store, which the agent of node 0 serves.

A node that is lost is waited for: the others' agents stop their workers and meet again, with the one that takes its
place. With node 0 the store is lost, and so all agents end, to be started again by whoever runs the nodes.
"""

import socket
import time
import uuid
from dataclasses import dataclass

from ..errors import OutsideError


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """One node's side of it."""

    host: str
    """Of node 0, as every node can reach it."""
    port: int
    nodes: int
    node_rank: int
    """Of this node: rank 0 of the workers is on node 0."""
    timeout_seconds: float
    """How long a node waits for the others: for the store, and again for all to join."""

    @property
    def patience_seconds(self) -> float:
        """How long an agent may be without a worker before it is taken for stuck: torch's calls have no bound."""
        return 2 * self.timeout_seconds + START_SECONDS

    def options(self) -> list[str]:
        """Of torchrun.

        Raises:
            OutsideError: when node 0 has no address within the timeout.
        """
        seconds = max(1, round(self.timeout_seconds))
        address = own_address(self.host, self.port, self.timeout_seconds)
        # torch orders the nodes by these names, and uses only the first one's as an address. One node's next process
        # has another: else what is left of the one before would pass for it.
        name = address if self.node_rank == 0 else f"node-{self.node_rank:06}-{uuid.uuid4().hex[:8]}"
        conf = {
            "is_host": self.node_rank == 0,
            "join_timeout": seconds,
            "read_timeout": seconds,
            "last_call_timeout": 1,
            "close_timeout": 5,
        }
        host = f"[{self.host}]" if ":" in self.host else self.host
        return [
            *(f"--nnodes={self.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={host}:{self.port}"),
            *("--rdzv-id=convergate", "--rdzv-conf", ",".join(f"{key}={value}" for key, value in conf.items())),
            f"--local-addr={name}",
        ]

    def trouble(self, error: str) -> str:
        """Why this node and the others did not meet, in one line.

        Args:
            error: torch's name of it; empty where its agent was stuck.
        """
        me, where = f"node {self.node_rank} of {self.nodes}", f"{self.host}:{self.port}"
        if error == "RendezvousTimeoutError":
            seconds = f"{self.timeout_seconds:.0f} s"
            return (
                f"{me}: not all nodes came to {where} within {seconds} → is one of them pending or failing?"
                " else raise distributed.timeout_minutes"
            )
        if error == "RendezvousClosedError":
            return f"{me}: another node gave up → its log tells why"
        return f"{me}: node 0 does not answer at {where} → its log tells whether it was lost"


START_SECONDS = 30.0
"""For what comes before an agent's first call and before a worker's first line: imports."""
_PAUSE_SECONDS = 0.5


def own_address(host: str, port: int, timeout_seconds: float) -> str:
    """The address of this machine on the way to another: no name service has to know it.

    Args:
        host: of the other machine, or of this one.
        port: any.
        timeout_seconds: for the host to have an address; a pod's name has one only once it is scheduled.

    Raises:
        OutsideError: when it has none by then.
    """
    until = time.monotonic() + timeout_seconds
    while True:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # UDP: nothing is sent
                return str(probe.getsockname()[0])
        except OSError as error:
            if time.monotonic() > until:
                raise OutsideError(
                    f"node 0, {host}: no way to it within {timeout_seconds:.0f} s ({error}) → is its pod scheduled?"
                ) from error
            time.sleep(_PAUSE_SECONDS)
