"""`python -m sandgate_agent`: the agent of one workspace."""

import argparse
import asyncio
import logging
import os
import signal

import uvloop

from sandgate_agent.configuration import CONTROL_TOKEN_DIGEST
from sandgate_agent.server import Options, serve
from sandgate_agent.token_file import MCP_TOKEN_PATH


def main() -> None:
    parser = argparse.ArgumentParser(prog="sandgate_agent", description="The agent of a Sandgate workspace.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # the pod's network is its own
    parser.add_argument("--port", type=int, default=49983, help="port of the HTTP surface")
    parser.add_argument("--door-port", type=int, default=49984, help="port of the stdio door")
    parser.add_argument("--mcp-token-file", default=MCP_TOKEN_PATH)
    parser.add_argument("--facts-directory", default="/run/e2b", help="where the sandbox's id is left for programs")
    parser.add_argument("--volume", help="serve the files below this directory to the control plane, and nothing else")
    arguments = parser.parse_args()
    control_token_digest = os.environ.pop(CONTROL_TOKEN_DIGEST, "")  # nothing that programs here need to see
    if not control_token_digest:
        parser.error(f"{CONTROL_TOKEN_DIGEST} is not set; it is the SHA-256 of the control token")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = Options(
        host=arguments.host,
        port=arguments.port,
        door_port=arguments.door_port,
        control_token_digest=control_token_digest,
        mcp_token_path=arguments.mcp_token_file,
        facts_directory=arguments.facts_directory,
    )
    # Programs inherit which signals are ignored, and that must not depend on how the agent was started (nohup, say).
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if arguments.volume is not None:
            # Not above: no sandbox needs it, and every one would have it in memory.
            from sandgate_agent.volume.server import VolumeOptions, serve_volume  # noqa: PLC0415

            volume = VolumeOptions(
                host=arguments.host,
                port=arguments.port,
                root=arguments.volume,
                control_token_digest=control_token_digest,
            )
            runner.run(serve_volume(volume))
        else:
            runner.run(serve(options))


if __name__ == "__main__":
    main()
