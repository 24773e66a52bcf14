"""What a container engine does for us: pods. Knows nothing of sandboxes, HTTP or the database.

A pod is a group of containers that share the network namespace of the first one and nothing else. Verbs are
idempotent: what is already so is left so, and deleting what is absent is silent. An engine keeps no state of its own;
pods are found again by their labels, so a restarted control plane owns what an earlier one started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from app.engines.builds import Builds
    from app.engines.jobs import Jobs
    from app.engines.runs import RunOutcome, RunSpec

ALL_TRAFFIC = IPv4Network("0.0.0.0/0")

ContainerState = Literal["absent", "created", "running", "paused", "exited"]
"""`absent`: belongs to the pod and is not there, because a start was cut short or somebody else removed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file put into a container before it starts; its directory is made as needed (root, 0755). Not into a volume."""

    path: str
    content: bytes = field(repr=False)
    mode: int = 0o400
    uid: int = 0
    """Owner, and group of the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    memory_mib: int
    cpus: float
    pids: int
    cpu_shares: int = 1024
    """What it gets of the processors beside others that want them too, in proportion; 1024 is the engine's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    """A volume made by `Engine.create_volume`, at a path of one container. Any number of containers may share it."""

    volume: str
    path: str
    """Absolute; made if it is not there."""
    read_only: bool = False
    shared: bool = False
    """A volume of the whole engine, for all installations, as its images are. It needs no making, is never removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    role: str
    """`gateway`, `workspace` or `server-<n>`; unique in the pod, `[a-z0-9-]+`."""
    image: str
    limits: Limits
    command: tuple[str, ...] | None = None
    """Arguments after the image's entrypoint; None keeps the image's own command."""
    entrypoint_prefix: tuple[str, ...] = ()
    """Put in front of the image's own entrypoint (and command), which stay as they are behind it."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: tuple[File, ...] = ()
    volumes: Mapping[str, str] = field(default_factory=dict)
    """Pod-local volume name -> path in the container. Volumes are in memory, world-writable, and go with the pod."""
    read_only_volumes: Mapping[str, str] = field(default_factory=dict)
    """Pod-local volumes as above, which it can read, and whose sockets it can connect to."""
    mounts: tuple[VolumeMount, ...] = ()
    """Volumes that outlive the pod. Each must be there when the container is made."""
    new_privileges: bool = False
    """Whether set-uid programs work (sudo in the workspace)."""
    capabilities: tuple[str, ...] = ()
    """Exactly the capabilities the container keeps, without `CAP_`."""
    user: str | None = None
    has_network: bool = True
    """Whether it is in the pod's network namespace. False: it has nothing but a loopback of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRules:
    """What one pod with egress may reach. What the engine forbids to every pod stays forbidden whatever they say."""

    allowed: tuple[IPv4Network, ...] = ()
    """Open even where `denied` says otherwise."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in lower case, `*.example.com` for every name below it, or `*`. Open for HTTP on port 80 and TLS on 443."""
    denied: tuple[IPv4Network, ...] = ()
    name_servers: tuple[IPv4Address, ...] | None = None
    """Open on every port while there are `allowed_hosts`. None: the engine's own name servers, on port 53."""

    def __post_init__(self) -> None:
        if self.allowed_hosts and ALL_TRAFFIC not in self.denied:
            raise ValueError("allowed_hosts mean something only where everything else is denied")

    @property
    def is_open(self) -> bool:
        """They deny nothing at all."""
        return not self.denied or ALL_TRAFFIC in self.allowed

    @property
    def is_closed(self) -> bool:
        """They let nothing through."""
        return ALL_TRAFFIC in self.denied and not self.allowed and not self.allowed_hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    pod_id: str
    containers: tuple[ContainerSpec, ...]
    """Started in this order; the first owns the network namespace."""
    egress: bool = True
    """Whether the internet can be reached from the pod."""
    egress_rules: EgressRules = EgressRules()
    """In force from the pod's first packet; `set_network` replaces them. Of no effect without `egress`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Never a secret: anyone with access to the engine reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    role: str
    state: ContainerState
    exit_code: int | None = None
    """Set once `exited`, where the engine knows it."""
    is_attached: bool = False
    """It was added by `attach`: the pod is what it is without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    pod_id: str
    labels: Mapping[str, str]
    address: str | None
    """Where the control plane reaches the pod's ports; None unless the first container runs."""
    containers: tuple[ContainerStatus, ...]

    @property
    def own(self) -> tuple[ContainerStatus, ...]:
        """The containers it was started with."""
        return tuple(container for container in self.containers if not container.is_attached)

    @property
    def is_running(self) -> bool:
        return self.address is not None and all(c.state == "running" for c in self.own)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    name: str
    version: str


class Engine(Protocol):
    """Every verb raises EngineUnavailable when the engine does not answer, and EngineError when it refuses."""

    @property
    def builds(self) -> Builds:
        """The verbs for building images."""
        ...

    @property
    def jobs(self) -> Jobs:
        """The verbs for work that runs to an end, and for volumes that all installations share."""
        ...

    async def check(self) -> EngineInfo:
        """Ask the engine who it is; bounded by 5 s."""
        ...

    async def prepare_networks(self) -> None:
        """Make what all pods share: networks, and the rules that confine them. Safe to repeat while pods run.

        Enough for jobs and builds, and all that a process may prepare beside one that starts pods: of those which are
        just being started it knows nothing. Raises: EngineError.
        """
        ...

    async def prepare(self) -> None:
        """`prepare_networks`, and put the rules of single pods in order and clear what a cut-off stop left.

        For the one process of an installation that starts pods: before the first start, and again whenever the rules
        may be lost. Safe to repeat while pods run. Raises: EngineError if pods would be unguarded; none is started from
        then on, until this succeeds.
        """
        ...

    async def has_image(self, image: str) -> bool: ...

    async def pin_image(self, image: str) -> str | None:
        """A name by which exactly this image is found however its tag moves: with the digest its registry gave it, or
        its id if it came from none. None if it is not on the engine."""
        ...

    async def read_file(self, image: str, path: str) -> bytes:
        """Content of one file in an image. Raises: ImageMissing, EngineError when the path is absent."""
        ...

    async def start(self, spec: PodSpec) -> Pod:
        """Bring the pod to `spec`: create and start what is missing. Returns once all containers run.

        A failed start leaves what it made for `stop` to remove. Raises: ImageMissing, EngineOutOfSpace.
        """
        ...

    async def attach(self, pod_id: str, containers: Sequence[ContainerSpec]) -> Mapping[str, str]:
        """Add containers to a running pod, side by side; one whose program fails is started again by the engine.

        What is there already is started if it does not run, and else left as it is. Gives why a container could not be
        made or started, by role. Raises: PodGone, EngineOutOfSpace.
        """
        ...

    async def detach(self, pod_id: str, roles: Iterable[str]) -> None:
        """Kill and remove containers that were attached, and the pod's volumes that only they had. Silent if absent."""
        ...

    async def run(self, pod_id: str, spec: RunSpec) -> RunOutcome:
        """Run a program to its end in a container of its own beside a running pod, which is the same without it.

        Once this returns, raises or is cancelled the container is gone, or will be in a moment; a run fails when its
        pod is paused, halted or stopped. Not to be repeated blindly.
        Raises: PodGone, ImageMissing, EngineOutOfSpace, EngineError also for a program that cannot be started.
        """
        ...

    async def remove_lost(self) -> None:
        """Remove the containers of runs that nobody in this process waits for, and of jobs that ended a while ago.

        For the one process of an installation that runs programs beside its pods. Safe to repeat.
        """
        ...

    async def stop(self, pod_id: str) -> None:
        """Kill and remove the pod's containers and volumes, whatever their state."""
        ...

    async def pause(self, pod_id: str) -> None:
        """Freeze every process of the pod; memory, files and address stay. Raises: PodGone."""
        ...

    async def halt(self, pod_id: str) -> None:
        """End every process of the pod, with 2 s to do so by itself; only files stay. Raises: PodGone."""
        ...

    async def resume(self, pod_id: str) -> Pod:
        """Let a paused or halted pod run again. After a halt its address may be another one. Raises: PodGone."""
        ...

    async def set_boot_id(self, pod_id: str, role: str, boot_id: str) -> None:
        """Let the processes of a running container read `boot_id` (a UUID) as the kernel's, until it ends.

        So that programs which tell boots apart by it see one after a halt. Raises: EngineError, also where the engine's
        host cannot do that; nothing else is the worse for it.
        """
        ...

    async def snapshot(self, pod_id: str, role: str, image: str) -> None:
        """Keep a container's files, as they are at one moment, as an image of that name.

        The container may run, be paused or be halted, and is so afterwards. Raises: PodGone, EngineOutOfSpace.
        """
        ...

    async def remove_image(self, image: str) -> bool:
        """Remove an image of this name; silent if there is none. False if a container still needs it."""
        ...

    async def set_network(self, pod_id: str, rules: EgressRules) -> None:
        """Replace the rules of a pod, running or not, for its open connections too. Returns once they are in force.

        They last as long as the pod and outlive the control plane, but not a restart of the engine's host or a flush of
        its packet filter: what this process has set, `prepare` then sets again. So a new control plane gives every pod
        that it adopts its rules once more. Raises: PodGone; EngineError for a pod without `egress`, unless the rules
        let nothing through.
        """
        ...

    async def observe(self) -> Mapping[str, Pod]:
        """All pods of this installation by pod id, in one call to the engine; half-made ones too."""
        ...

    async def logs(self, pod_id: str, role: str, *, tail: int, timestamps: bool = False) -> str:
        """The last lines a container wrote, stdout and stderr together; empty if there is none.

        With `timestamps` each begins with its moment (RFC 3339, UTC) and a space.
        """
        ...

    async def create_volume(self, name: str) -> None:
        """Make an empty volume that outlives pods; every user may write to its root. `name` is `[a-z0-9_.-]+`.

        One that is there keeps its content. Raises: ImageMissing before the images are built.
        """
        ...

    async def remove_volume(self, name: str) -> bool:
        """Remove a volume and what is in it; silent if there is none. False if a container holds it, running or not."""
        ...

    async def volumes(self) -> frozenset[str]:
        """Names of all volumes of this installation that outlive pods."""
        ...

    async def remove_installation(self, *, with_volumes: bool = False) -> tuple[str, ...]:
        """Undo `prepare` and remove every pod: nothing of this installation is left but its images and, unless asked
        for, the volumes that outlive pods. Gives the names of what the engine would not let go. Safe to repeat."""
        ...

    async def aclose(self) -> None: ...
