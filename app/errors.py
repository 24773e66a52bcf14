"""What callers are told, and what parts of the control plane tell each other. Knows no HTTP framework.

    SandgateError
    ├── Problem                       an answer to a caller: status, message
    │   ├── InvalidRequest       400
    │   ├── Unauthorized         401
    │   ├── NotFound             404
    │   ├── Conflict             409
    │   │   └── GuestUnresponsive    with an error code that SDKs know
    │   ├── BodyTooLarge         413
    │   ├── ServerStartFailed    424
    │   ├── SandboxFailed        500
    │   ├── EngineAway           503   with Retry-After
    │   ├── TooBusy              503   with Retry-After
    │   ├── DatabaseLocked       503   with Retry-After
    │   └── OutOfSpace           507
    └── EngineError                   from an engine to who moves sandboxes
        ├── EngineUnavailable         the engine does not answer
        │   └── EngineNotPrepared     it has not been made ready for pods in this process
        ├── ImageMissing              an image is not on the engine
        ├── PodGone                   a pod, or a container of it, is not there any more
        ├── EngineOutOfSpace          the engine's disk is full
        ├── ImagePullError            a registry does not give an image (`app.engines.builds`)
        └── ImageBuildError           a step of an image's build failed (`app.engines.images`)

A message says what happened, to which server, field or sandbox, and what to do. It never holds a credential's value.
"""

from __future__ import annotations

from typing import ClassVar


class SandgateError(Exception):
    """Root of everything this product raises on purpose."""


class Problem(SandgateError):
    """An answer to a caller. Rendered once, in `app.api.errors`, as `{"code": <status>, "message": …}`."""

    status: ClassVar[int] = 500
    retry_after_s: ClassVar[int | None] = None
    error_code: ClassVar[str | None] = None
    """Tells problems of one status apart for programs; in the answer as `error_code`."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(Problem):
    status = 400


class Unauthorized(Problem):
    status = 401


class NotFound(Problem):
    status = 404


class Conflict(Problem):
    status = 409


class GuestUnresponsive(Conflict):
    """A sandbox was to be paused only if its agent answers, and it does not."""

    error_code = "sandbox_snapshot_guest_agent_unresponsive"


class BodyTooLarge(Problem):
    status = 413


class ServerStartFailed(Problem):
    """An MCP server did not come up. Permanent for these inputs, so no status that clients retry."""

    status = 424


class SandboxFailed(Problem):
    """The sandbox's containers could not be brought up, for a reason on our side."""

    status = 500


class EngineAway(Problem):
    status = 503
    retry_after_s = 5


class TooBusy(Problem):
    """More sandboxes are being started than this machine can start in the time that a caller waits."""

    status = 503
    retry_after_s = 10


class DatabaseLocked(Problem):
    """Something else keeps the database to itself."""

    status = 503
    retry_after_s = 5


class OutOfSpace(Problem):
    status = 507


class EngineError(SandgateError):
    """An engine could not do what it was asked. The text is for an operator and holds no secret."""


class EngineUnavailable(EngineError):
    """The engine does not answer; the same call may succeed later."""


class EngineNotPrepared(EngineUnavailable):
    """The networks that confine pods are not known to be there yet; they soon are, if the engine answers."""

    def __init__(self) -> None:
        super().__init__("The sandboxes' networks are not prepared yet.")


class ImageMissing(EngineError):
    """An image that a container needs is not on the engine."""

    def __init__(self, image: str) -> None:
        super().__init__(
            f"Image {image} is not on the engine. `sandgate images build` makes those of Sandgate itself; that of a"
            " template or a snapshot comes back only with a new build."
        )
        self.image = image


class PodGone(EngineError):
    """A pod that should be there is not, or a container of it is missing: somebody else removed it."""

    def __init__(self, pod_id: str) -> None:
        super().__init__(f"Pod {pod_id} is gone, or a container of it is.")
        self.pod_id = pod_id


class EngineOutOfSpace(EngineError):
    """The engine's disk is full."""
