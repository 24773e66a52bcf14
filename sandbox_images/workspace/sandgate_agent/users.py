"""Who a request acts for: the accounts of the sandbox, and how a request names one."""

import base64
import binascii
import os
import pwd
from dataclasses import dataclass

from sandgate_agent.errors import Unauthenticated


@dataclass(frozen=True, slots=True)
class User:
    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """All groups, the primary one included."""
    home: str
    shell: str


def find_user(name: str) -> User:
    """The account of that name. Raises: Unauthenticated."""
    try:
        account = pwd.getpwnam(name)
    except (KeyError, ValueError) as error:
        raise Unauthenticated(f"invalid username: '{name}'") from error
    groups = tuple(os.getgrouplist(account.pw_name, account.pw_gid))
    return User(account.pw_name, account.pw_uid, account.pw_gid, groups, account.pw_dir, account.pw_shell or "/bin/sh")


def user_named_by(authorization: str | None) -> str | None:
    """The user name in a Basic header with an empty password; None without one.

    The header selects a user, it proves nothing: the credential of a request is its access token.
    Raises: Unauthenticated.
    """
    if not authorization:
        return None
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Unauthenticated("the Authorization header is not valid Basic credentials") from error
    return decoded.partition(":")[0] or None
