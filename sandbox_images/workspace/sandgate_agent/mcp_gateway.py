"""The command `mcp-gateway` of the workspace: asks the sandbox's gateway for a configuration (ARCHITECTURE.md, 6.5).

E2B's SDKs run it as root and wait for its end: whatever goes wrong is one line on stderr and exit code 1. Standard
library only, so that it starts quickly.
"""

import argparse
import http.client
import json
import os
import sys
import uuid
from typing import Any, NoReturn

from sandgate_agent.token_file import MCP_TOKEN_PATH, write_token

_PORT = 50006
_TIMEOUT_S = 58.0
"""E2B's SDKs give the command 60 s and kill the sandbox then: our own message has to come first."""

_NO_GATEWAY = "no MCP gateway runs in this sandbox: create the sandbox from the template mcp-gateway, or with `mcp`"


def main() -> None:
    arguments = _parse_arguments()
    if arguments.command == "pull":
        _request(arguments, {"pull": arguments.servers})
        return
    servers = _parse_servers(arguments.config)
    token = os.environ.get("GATEWAY_ACCESS_TOKEN") or str(uuid.uuid4())
    _request(arguments, {"mcp": servers, "token": token})
    try:
        write_token(arguments.token_file, token)
    except OSError as error:
        _fail(f"the gateway runs, but its token cannot be written to {arguments.token_file}: {error.strerror}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mcp-gateway", description="Configure the MCP gateway of this sandbox.")
    parser.add_argument("--config", metavar="JSON", help="map of MCP servers to their properties")
    parser.add_argument("--port", type=int, default=_PORT, help=argparse.SUPPRESS)
    parser.add_argument("--token-file", default=MCP_TOKEN_PATH, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command")
    pull = commands.add_parser("pull", help="fetch what servers need, before they are named")
    pull.add_argument("servers", nargs="+", metavar="server")
    arguments = parser.parse_args()
    if (arguments.command is None) == (arguments.config is None):
        parser.error("give either --config or the command pull")
    return arguments


def _parse_servers(config: str) -> dict[str, Any]:
    try:
        servers = json.loads(config)
    except ValueError as error:
        # Not the text itself: it holds credentials.
        _fail(f"--config is not valid JSON: {error}")
    if not isinstance(servers, dict) or not all(isinstance(properties, dict) for properties in servers.values()):
        _fail("--config must be a JSON object that maps the names of MCP servers to objects")
    return servers


def _request(arguments: argparse.Namespace, message: dict[str, Any]) -> None:
    """Have the gateway's owner settle the message; ends the program unless it does so well."""
    try:
        with open(arguments.token_file, encoding="utf-8") as file:
            token = file.read().strip()
    except FileNotFoundError:
        _fail(_NO_GATEWAY)
    except UnicodeDecodeError:
        _fail(f"the file {arguments.token_file} holds no token")
    except OSError as error:
        _fail(f"the gateway's token cannot be read from {arguments.token_file}: {error.strerror}; run this as root")
    connection = http.client.HTTPConnection("127.0.0.1", arguments.port, timeout=_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/requests", json.dumps(message).encode(), headers)
        response = connection.getresponse()
        status, body = response.status, response.read()
    except ConnectionRefusedError:
        _fail(_NO_GATEWAY)
    except TimeoutError:
        _fail(f"the MCP gateway did not answer within {_TIMEOUT_S:.0f} seconds")
    except (OSError, http.client.HTTPException) as error:
        _fail(f"the connection to the MCP gateway broke: {error}")
    except ValueError:
        # Not its text: it repeats the token.
        _fail(f"the file {arguments.token_file} holds no token that can be sent")
    finally:
        connection.close()
    if status != 200:
        _fail(_explanation(status, body))


def _explanation(status: int, body: bytes) -> str:
    if status == 401:
        return "the MCP gateway does not accept this sandbox's token"
    if status == 504:
        return "nobody settled the configuration in time: is the control plane running?"
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        return f"the MCP gateway answered with status {status}"
    return " ".join(str(message).split())


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"mcp-gateway: {message}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
