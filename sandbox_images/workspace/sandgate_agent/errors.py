"""Every error the agent tells a caller, with its HTTP status and its Connect code.

The pairs are those of the Connect protocol (https://connectrpc.com/docs/protocol#error-codes); the statuses without a
code of their own there (406, 412, 416, 507) only occur on /files.

    AgentError                          500 internal
    ├── InvalidArgument                 400 invalid_argument
    ├── Unauthenticated                 401 unauthenticated
    ├── PermissionDenied                403 permission_denied
    ├── NotFound                        404 not_found
    ├── MethodNotAllowed                405 unimplemented
    ├── NotAcceptable                   406 invalid_argument
    ├── AlreadyExists                   409 already_exists
    ├── PreconditionFailed              412 failed_precondition
    ├── BodyTooLarge                    413 resource_exhausted
    ├── UnsupportedMediaType            415 invalid_argument
    ├── RangeNotSatisfiable             416 out_of_range
    ├── ResourceExhausted               429 resource_exhausted
    ├── Unknown                         500 unknown
    ├── Unimplemented                   501 unimplemented
    ├── DeadlineExceeded                504 deadline_exceeded
    └── NoSpaceLeft                     507 resource_exhausted
"""

# ruff: noqa: N818 - an error is named for the fact it tells, not with the suffix Error

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class AgentError(Exception):
    """What went wrong, in words for the caller."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers or {}


class InvalidArgument(AgentError):
    status, code = 400, "invalid_argument"


class Unauthenticated(AgentError):
    status, code = 401, "unauthenticated"


class PermissionDenied(AgentError):
    status, code = 403, "permission_denied"


class NotFound(AgentError):
    status, code = 404, "not_found"


class MethodNotAllowed(AgentError):
    status, code = 405, "unimplemented"


class NotAcceptable(AgentError):
    status, code = 406, "invalid_argument"


class AlreadyExists(AgentError):
    status, code = 409, "already_exists"


class PreconditionFailed(AgentError):
    status, code = 412, "failed_precondition"


class BodyTooLarge(AgentError):
    status, code = 413, "resource_exhausted"


class UnsupportedMediaType(AgentError):
    status, code = 415, "invalid_argument"


class RangeNotSatisfiable(AgentError):
    status, code = 416, "out_of_range"


class ResourceExhausted(AgentError):
    status, code = 429, "resource_exhausted"


class Unknown(AgentError):
    status, code = 500, "unknown"


class Unimplemented(AgentError):
    status, code = 501, "unimplemented"


class DeadlineExceeded(AgentError):
    status, code = 504, "deadline_exceeded"


class NoSpaceLeft(AgentError):
    status, code = 507, "resource_exhausted"


class ClientGone(Exception):
    """The caller hung up before the request was read or answered; nobody is left to tell."""


@contextmanager
def os_errors_mapped(path: str) -> Iterator[None]:
    """Turn what the operating system says about a path into what the caller reads."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"path '{path}' does not exist") from error
    except FileExistsError as error:
        raise AlreadyExists(f"path '{path}' already exists") from error
    except IsADirectoryError as error:
        raise InvalidArgument(f"path '{path}' is a directory") from error
    except NotADirectoryError as error:
        raise InvalidArgument(f"path '{path}' has a parent that is not a directory") from error
    except PermissionError as error:
        raise PermissionDenied(f"permission denied: '{path}'") from error
    except RecursionError as error:  # what the standard library does to a tree of a thousand levels
        raise InvalidArgument(f"path '{path}' is nested too deeply: use a command for it") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceLeft(f"not enough disk space to write '{path}'") from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENOTEMPTY):
            raise InvalidArgument(f"path '{path}' cannot be used: {error.strerror}") from error
        raise AgentError(f"'{path}': {error.strerror}") from error
