"""The environment of a process in the sandbox."""

import os
from collections.abc import Mapping

from sandgate_agent.configuration import Configuration
from sandgate_agent.users import User

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def process_environment(user: User, configuration: Configuration, requested: Mapping[str, str]) -> dict[str, str]:
    """Later wins: the image's own variables, the user's, the sandbox's, the sandbox's identity, the request's.

    The image's variables are passed on because that is where a template keeps its PATH and the certificates to trust.
    """
    return {
        "PATH": _DEFAULT_PATH,
        **os.environ,
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        **configuration.environment,
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": configuration.sandbox_id,
        "E2B_TEMPLATE_ID": configuration.template_id,
        "E2B_TEAM_ID": configuration.team_id,
        **requested,
    }
