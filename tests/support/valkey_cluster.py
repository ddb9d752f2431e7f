"""Three real Valkeys that make one cluster, on loopback; each a third of the slots."""

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.support.valkey import READY_S, Valkey, free_port

SLOTS = 16_384
NODES = 3
#: A node that does not answer counts as gone after this.
NODE_TIMEOUT_MS = 1_000


class Node(Valkey):
    """One server of a cluster; it keeps its place in it when it is killed, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self._bus_port = free_port()

    def command(self) -> list[str]:
        return [
            *super().command(),
            *("--cluster-enabled", "yes", "--cluster-config-file", str(self.folder / "nodes")),
            *("--cluster-port", str(self._bus_port), "--cluster-announce-ip", "127.0.0.1"),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            *("--cluster-require-full-coverage", "no"),
        ]

    @property
    def id(self) -> str:
        return str(self.admin.execute_command("CLUSTER", "MYID"))

    @property
    def place(self) -> tuple[str, int, int]:
        """Its host, port and bus port, as CLUSTER MEET takes them."""
        return "127.0.0.1", self.port, self._bus_port


class ValkeyCluster:
    """``admins``: a blocking client of each node, beside the store under test."""

    def __init__(self) -> None:
        self.nodes = [Node() for _ in range(NODES)]

    @property
    def admin(self) -> redis.Redis:
        """Of one of them: its clock is everybody's."""
        return self.nodes[0].admin

    @property
    def tcp_url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis://{hosts}?cluster=true"

    @property
    def admins(self) -> list[redis.Redis]:
        return [node.admin for node in self.nodes]

    def start(self) -> "ValkeyCluster":
        for number, node in enumerate(self.nodes):
            node.start()
            first, last = SLOTS * number // NODES, SLOTS * (number + 1) // NODES - 1
            node.admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.admin.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            node.admin.execute_command("CLUSTER", "MEET", *self.nodes[0].place)
        self.wait(lambda: all(self._whole(admin) for admin in self.admins))
        return self

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + READY_S
        while not condition():
            assert time.monotonic() < until, "the cluster did not get there"
            time.sleep(0.02)

    def owner(self, slot: int) -> Node:
        return self.nodes[next(n for n in range(NODES) if slot < SLOTS * (n + 1) // NODES)]

    def flushall(self) -> None:
        for admin in self.admins:
            admin.flushall()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _whole(self, admin: redis.Redis) -> bool:
        told = admin.execute_command("CLUSTER", "INFO")
        said = (
            told
            if isinstance(told, dict)
            else dict(line.split(":", 1) for line in told.split() if ":" in line)
        )
        return (
            said["cluster_state"] == "ok"
            and said["cluster_known_nodes"] == str(NODES)
            and (said["cluster_slots_ok"] == str(SLOTS))
        )


@contextlib.contextmanager
def serving_cluster() -> Iterator[ValkeyCluster]:
    cluster = ValkeyCluster()
    try:
        yield cluster.start()
    finally:
        cluster.close()


_RUNNING = pytest.StashKey[ValkeyCluster]()


@pytest.fixture(scope="session")
def valkey_cluster(request: pytest.FixtureRequest) -> ValkeyCluster:
    """One cluster a test process, for tests that leave it running; each takes a tag of its own."""
    stash = request.config.stash
    if _RUNNING not in stash:
        cluster = serving_cluster()
        stash[_RUNNING] = cluster.__enter__()
        request.config.add_cleanup(lambda: cluster.__exit__(None, None, None))
    return stash[_RUNNING]


@pytest.fixture
def own_cluster() -> Iterator[ValkeyCluster]:
    """A cluster to stop, kill and move slots in."""
    with serving_cluster() as cluster:
        yield cluster
