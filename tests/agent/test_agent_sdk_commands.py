"""Commands through the official Python SDK."""

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    TimeoutException,
)

from tests.agent.running_agent import USER_UID, RunningAgent, what_is_left_of


def test_output_and_exit_code_of_a_command_arrive(agent: RunningAgent) -> None:
    result = agent.sandbox().commands.run("echo out; echo err >&2")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "err\n")


def test_a_failing_command_raises_with_its_code_and_output(agent: RunningAgent) -> None:
    with pytest.raises(CommandExitException) as caught:
        agent.sandbox().commands.run("echo why >&2; exit 3")

    assert (caught.value.exit_code, caught.value.stderr, caught.value.error) == (3, "why\n", "exit status 3")


def test_a_command_runs_as_the_default_user_with_all_groups_in_the_home(agent: RunningAgent) -> None:
    result = agent.sandbox().commands.run("id -u; id -Gn; pwd; umask")

    assert result.stdout.splitlines() == [str(USER_UID), "user shared", str(agent.home), "0022"]


def test_a_command_runs_as_the_user_asked_for(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()

    assert sandbox.commands.run("id -un", user="root").stdout == "root\n"
    assert sandbox.commands.run("id -un; pwd", user="other").stdout == "other\n/\n"


def test_an_unknown_user_is_refused(agent: RunningAgent) -> None:
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-knows'"):
        agent.sandbox().commands.run("true", user="nobody-knows")


def test_the_environment_has_the_sandbox_s_facts_and_the_request_wins(agent: RunningAgent) -> None:
    names = "HOME USER LOGNAME SHELL OF_THE_SANDBOX E2B_SANDBOX E2B_SANDBOX_ID E2B_TEMPLATE_ID E2B_TEAM_ID OWN"
    script = f'for name in {names}; do echo "$name=${{!name}}"; done'

    result = agent.sandbox().commands.run(script, envs={"OWN": "1", "OF_THE_SANDBOX": "no"})

    assert result.stdout.splitlines() == [
        f"HOME={agent.home}",
        "USER=user",
        "LOGNAME=user",
        "SHELL=/bin/bash",
        "OF_THE_SANDBOX=no",
        "E2B_SANDBOX=true",
        "E2B_SANDBOX_ID=itestsandbox",
        "E2B_TEMPLATE_ID=base",
        "E2B_TEAM_ID=team_test",
        "OWN=1",
    ]


def test_a_command_starts_in_the_directory_asked_for(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.commands.run("mkdir -p ~/deep/down")

    assert sandbox.commands.run("pwd", cwd="/usr").stdout == "/usr\n"
    assert sandbox.commands.run("pwd", cwd="deep/down").stdout == f"{agent.home}/deep/down\n"


def test_a_missing_directory_is_named(agent: RunningAgent) -> None:
    with pytest.raises(InvalidArgumentException, match="cwd '/not/there' does not exist"):
        agent.sandbox().commands.run("true", cwd="/not/there")


def test_a_megabyte_of_output_arrives_whole(agent: RunningAgent) -> None:
    result = agent.sandbox().commands.run("head -c 1048576 /dev/zero | tr '\\0' x")

    assert result.stdout == "x" * 1048576


def test_output_that_is_not_text_does_not_break_the_stream(agent: RunningAgent) -> None:
    result = agent.sandbox().commands.run(r"printf 'a\xff\xfeb'; printf '\xe2\x82' ; printf '\xac'")

    assert result.stdout == "a��b€"


def test_a_command_over_its_time_is_killed_with_all_it_started(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()

    with pytest.raises(TimeoutException):
        sandbox.commands.run("echo $$ > pid; sleep 1000 & sleep 1000", timeout=3)

    assert sandbox.commands.run(what_is_left_of('"$(cat pid)"')).stdout == ""


def test_output_is_passed_on_while_the_command_runs(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    handle = sandbox.commands.run("echo first; cat > /dev/null; echo second", background=True, stdin=True)
    seen: list[str] = []

    def note(output: str) -> None:
        seen.append(output)
        if output == "first\n":
            sandbox.commands.close_stdin(handle.pid)

    handle.wait(on_stdout=note)

    assert seen == ["first\n", "second\n"]


def test_a_background_command_is_listed_and_can_be_killed(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    handle = sandbox.commands.run("sleep 1000", background=True, envs={"A": "b"}, cwd="/tmp")

    [listed] = [process for process in sandbox.commands.list() if process.pid == handle.pid]
    assert (listed.cmd, listed.args, listed.envs, listed.cwd) == (
        "/bin/bash",
        ["-l", "-c", "sleep 1000"],
        {"A": "b"},
        "/tmp",
    )
    assert sandbox.commands.run(f"kill -0 {handle.pid}").exit_code == 0
    assert handle.kill() is True
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    assert sandbox.commands.kill(handle.pid) is False
    assert handle.pid not in [process.pid for process in sandbox.commands.list()]


def test_a_command_outlives_its_listener_and_another_can_connect(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    handle = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    handle.disconnect()

    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "hello\n")

    assert again.wait().stdout == "got hello\n"


def test_the_end_of_a_finished_command_can_be_asked_for_again(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    handle = sandbox.commands.run("exit 4", background=True)
    with pytest.raises(CommandExitException):
        handle.wait()

    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.connect(handle.pid).wait()

    assert caught.value.exit_code == 4


def test_connecting_to_an_unknown_process_says_so(agent: RunningAgent) -> None:
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        agent.sandbox().commands.connect(999999)


def test_input_without_stdin_is_refused(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    handle = sandbox.commands.run("sleep 1000", background=True, stdin=False)

    with pytest.raises(Exception, match="error writing to stdin"):
        sandbox.commands.send_stdin(handle.pid, "x")

    handle.kill()


def test_a_background_child_without_the_output_does_not_hold_the_command(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()

    result = sandbox.commands.run("sleep 1000 > /dev/null 2>&1 & echo $!", timeout=30)

    pid = result.stdout.strip()
    assert sandbox.commands.run(f"kill {pid}").exit_code == 0
