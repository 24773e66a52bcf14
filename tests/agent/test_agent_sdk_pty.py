"""Terminals through the official Python SDK."""

from collections.abc import Callable

import pytest
from e2b import CommandExitException
from e2b.sandbox.commands.command_handle import PtySize

from tests.agent.running_agent import RunningAgent


class _Conversation:
    """Says each line once what it waits for has been heard since the one before."""

    def __init__(self, *turns: tuple[bytes, Callable[[], object]]) -> None:
        self.heard = b""
        self._since = 0
        self._turns = list(turns)

    def hear(self, data: bytes) -> None:
        self.heard += data
        while self._turns and self._turns[0][0] in self.heard[self._since :]:
            self._since = len(self.heard)
            self._turns.pop(0)[1]()


def test_a_shell_in_a_terminal_hears_and_answers_and_knows_its_size(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    output: list[bytes] = []
    terminal = sandbox.pty.create(PtySize(cols=100, rows=30), cwd="/usr", envs={"OWN": "variable"})

    sandbox.pty.send_stdin(terminal.pid, b"tty; stty size; id -un; pwd; echo $OWN $TERM; exit 5\n")
    with pytest.raises(CommandExitException) as caught:
        terminal.wait(on_pty=output.append)

    text = b"".join(output).decode()
    assert caught.value.exit_code == 5
    for expected in ("/dev/pts/", "30 100", "user", "/usr", "variable xterm-256color"):
        assert f"{expected}\r\n" in text or expected == "/dev/pts/" and expected in text


def test_a_client_that_knows_no_size_gets_a_terminal_all_the_same(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    output: list[bytes] = []
    terminal = sandbox.pty.create(PtySize(cols=0, rows=0))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    terminal.wait(on_pty=output.append)
    assert b"0 0\r\n" in b"".join(output)


def test_a_terminal_can_be_resized(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    output: list[bytes] = []
    terminal = sandbox.pty.create(PtySize(cols=80, rows=24))

    sandbox.pty.resize(terminal.pid, PtySize(cols=123, rows=45))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    terminal.wait(on_pty=output.append)

    assert "45 123" in b"".join(output).decode()


def test_a_terminal_controls_its_shell(agent: RunningAgent) -> None:
    """Ctrl-C reaches what runs in the foreground, and job control works."""
    sandbox = agent.sandbox()
    sandbox.files.write("greeting", "up\n")
    terminal = sandbox.pty.create(PtySize(cols=80, rows=24))
    output = _Conversation(
        (b"$ ", lambda: sandbox.pty.send_stdin(terminal.pid, b"tail -f greeting\n")),
        (b"up\r\n", lambda: sandbox.pty.send_stdin(terminal.pid, b"\x03")),
        (b"$ ", lambda: sandbox.pty.send_stdin(terminal.pid, b"echo status $?; exit\n")),
    )

    assert terminal.wait(on_pty=output.hear).exit_code == 0
    assert b"status 130\r\n" in output.heard
    assert b"no job control" not in output.heard


def test_a_terminal_is_killed_with_its_shell(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    terminal = sandbox.pty.create(PtySize(cols=80, rows=24))

    assert sandbox.pty.kill(terminal.pid) is True
    with pytest.raises(CommandExitException):
        terminal.wait()
    assert sandbox.pty.kill(terminal.pid) is False


def test_a_terminal_s_input_is_closed_with_ctrl_d_only(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    terminal = sandbox.pty.create(PtySize(cols=80, rows=24))
    output = _Conversation((b"$ ", lambda: sandbox.pty.send_stdin(terminal.pid, b"\x04")))

    with pytest.raises(Exception, match="error closing stdin"):
        sandbox.commands.close_stdin(terminal.pid)

    assert terminal.wait(on_pty=output.hear).exit_code == 0


def test_a_process_without_a_terminal_has_no_size(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    handle = sandbox.commands.run("sleep 1000", background=True)

    with pytest.raises(Exception, match="the process has no terminal"):
        sandbox.pty.resize(handle.pid, PtySize(cols=80, rows=24))

    handle.kill()
