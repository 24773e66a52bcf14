"""process.Process on the wire: envelopes, errors, deadlines, signals."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.agent.envelopes import STREAM_TYPE, bash, envelope, envelopes_in, output, stream
from tests.agent.running_agent import RunningAgent, what_is_left_of

START = "/process.Process/Start"
CONNECT = "/process.Process/Connect"
HEADERS = {"Content-Type": STREAM_TYPE}


def call(client: httpx.Client, method: str, message: Any) -> httpx.Response:
    return client.post(f"/process.Process/{method}", json=message)


def test_a_command_is_start_then_data_then_end_then_the_end_of_the_stream(agent: RunningAgent) -> None:
    with agent.client() as client:
        envelopes = stream(client, START, bash("echo hi", stdin=False))

    pid = envelopes[0][1]["event"]["start"]["pid"]
    assert envelopes == [
        (0, {"event": {"start": {"pid": pid}}}),
        (0, {"event": {"data": {"stdout": base64.b64encode(b"hi\n").decode()}}}),
        (0, {"event": {"end": {"exitCode": 0, "exited": True, "status": "exit status 0"}}}),
        (2, {}),
    ]


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("exit 3", {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}),
        ("kill $$", {"exitCode": -1, "exited": False, "status": "signal: terminated", "error": "signal: terminated"}),
        ("kill -9 $$", {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}),
        ("kill -1 $$", {"exitCode": -1, "exited": False, "status": "signal: hangup", "error": "signal: hangup"}),
    ],
)
def test_how_a_command_ended_is_told(agent: RunningAgent, script: str, end: dict[str, Any]) -> None:
    with agent.client() as client:
        envelopes = stream(client, START, bash(script))

    assert envelopes[-2:] == [(0, {"event": {"end": end}}), (2, {})]


def test_a_chunked_request_is_as_good_as_one_with_a_length(agent: RunningAgent) -> None:
    message = envelope(bash("echo hi"))
    with agent.client() as client:
        answer = client.post(START, content=iter([message[:3], message[3:20], message[20:]]), headers=HEADERS)

    assert output(list(envelopes_in(iter([answer.content])))) == b"hi\n"


def test_both_spellings_of_a_field_and_unknown_fields_are_accepted(agent: RunningAgent) -> None:
    message = {"process": {"cmd": "/bin/echo", "args": ["hi"], "envs": None, "newField": 1}, "tag": None, "other": {}}
    with agent.client() as client:
        assert output(stream(client, START, message)) == b"hi\n"


def test_a_program_is_looked_for_in_the_path(agent: RunningAgent) -> None:
    with agent.client() as client:
        assert output(stream(client, START, {"process": {"cmd": "echo", "args": ["found"]}})) == b"found\n"


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ({}, "invalid_argument", "process is required"),
        ({"process": {}}, "invalid_argument", "process.cmd is required"),
        ({"process": {"cmd": 1}}, "invalid_argument", "cmd must be a string"),
        ({"process": {"cmd": "id", "args": "x"}}, "invalid_argument", "args must be a list of strings"),
        ({"process": {"cmd": "i\0d"}}, "invalid_argument", "may not contain a NUL character"),
        ({"process": {"cmd": "id", "envs": {"A=B": "c"}}}, "invalid_argument", "may not be empty or contain '='"),
        ({"process": {"cmd": "id", "cwd": "/not/there"}}, "invalid_argument", "cwd '/not/there' does not exist"),
        ({"process": {"cmd": "id", "cwd": "/etc/passwd"}}, "invalid_argument", "is not a directory"),
        ({"process": {"cmd": "/no/such"}}, "invalid_argument", "could not start '/no/such': No such file"),
        ({"process": {"cmd": "id"}, "pty": {"size": {"cols": 65536}}}, "invalid_argument", "pty.size needs cols"),
    ],
)
def test_a_stream_that_cannot_begin_is_200_with_an_error_at_its_end(
    agent: RunningAgent, message: Any, code: str, text: str
) -> None:
    with agent.client() as client:
        [(flags, content)] = stream(client, START, message)

    assert (flags, content["error"]["code"], text in content["error"]["message"]) == (2, code, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0\0\0\5{", b"\0\0\0\0\1{", b"\1\0\0\0\2{}", b"\0\xff\xff\xff\xff", envelope({}) * 2, b"\0\0\0\0\2[]"],
)
def test_a_broken_envelope_is_an_error_at_the_end_of_the_stream(agent: RunningAgent, body: bytes) -> None:
    with agent.client() as client:
        answer = client.post(START, content=body, headers=HEADERS)

    assert answer.status_code == 200
    [(flags, content)] = envelopes_in(iter([answer.content]))
    assert (flags, content["error"]["code"] in ("invalid_argument", "resource_exhausted")) == (2, True)


def test_a_call_of_the_wrong_kind_is_refused(agent: RunningAgent) -> None:
    with agent.client() as client:
        protobuf = client.post(START, content=b"", headers={"Content-Type": "application/connect+proto"})
        unary_as_stream = client.post("/process.Process/List", content=b"", headers=HEADERS)
        fetched = client.get("/process.Process/List")
        unknown = client.post("/process.Process/Dance", json={})
        nowhere = client.post("/nothing", json={})

    assert protobuf.status_code == unary_as_stream.status_code == 415
    assert (fetched.status_code, fetched.headers["allow"]) == (405, "POST")
    assert (unknown.status_code, unknown.json()["code"]) == (501, "unimplemented")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "not_found")


def test_a_deadline_kills_the_group_and_is_the_stream_s_error(agent: RunningAgent) -> None:
    with agent.client() as client:
        envelopes = stream(client, START, bash("echo early; sleep 1000 & sleep 1000"), {"Connect-Timeout-Ms": "3000"})
        pid = envelopes[0][1]["event"]["start"]["pid"]
        left = output(stream(client, START, bash(what_is_left_of(pid))))

    assert output(envelopes) == b"early\n"
    assert (envelopes[-1][0], envelopes[-1][1]["error"]["code"], left) == (2, "deadline_exceeded", b"")


def test_a_deadline_is_not_held_up_by_a_process_that_left_the_group(agent: RunningAgent) -> None:
    with agent.client() as client:
        envelopes = stream(client, START, bash("setsid sleep 20 & sleep 1000"), {"Connect-Timeout-Ms": "300"})

    assert envelopes[-1][1]["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["-1", "soon", "12345678901"])
def test_a_timeout_that_is_no_number_is_refused(agent: RunningAgent, value: str) -> None:
    with agent.client() as client:
        answer = client.post(START, content=envelope(bash("true")), headers={**HEADERS, "Connect-Timeout-Ms": value})

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")


def test_a_timeout_of_zero_is_none(agent: RunningAgent) -> None:
    with agent.client() as client:
        envelopes = stream(client, START, bash("sleep 0.2; echo done"), {"Connect-Timeout-Ms": "0"})
        listed = client.post("/process.Process/List", json={}, headers={"Connect-Timeout-Ms": "0"})

    assert (output(envelopes), envelopes[-1], listed.status_code) == (b"done\n", (2, {}), 200)


def test_a_command_is_killed_before_the_agent_when_memory_runs_out(agent: RunningAgent) -> None:
    with agent.client() as client:
        message = envelope(bash("read line", tag="likelier"))
        with client.stream("POST", START, content=message, headers=HEADERS) as answer:
            pid = next(envelopes_in(answer.iter_raw()))[1]["event"]["start"]["pid"]
            own, of_the_agent = (
                int(Path(f"/proc/{number}/oom_score_adj").read_text()) for number in (pid, agent.process.pid)
            )
            call(client, "SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})

    assert own > of_the_agent


def test_what_a_command_writes_does_not_stay_in_the_agent_s_memory(agent: RunningAgent) -> None:
    process = psutil.Process(agent.process.pid)
    size = 256 << 20
    with agent.client(timeout=120) as client:
        stream(client, START, bash("head -c 16M /dev/zero"))
        before = largest = process.memory_info().rss
        received = 0
        with client.stream(
            "POST", START, content=envelope(bash(f"head -c {size} /dev/zero")), headers=HEADERS
        ) as answer:
            for number, (_, content) in enumerate(envelopes_in(answer.iter_raw())):
                data = content.get("event", {}).get("data", {})
                received += len(base64.b64decode(data.get("stdout", "")))
                if number % 256 == 0:
                    largest = max(largest, process.memory_info().rss)

    assert received == size
    assert largest - before < 24 << 20


def test_no_zombie_is_left_of_a_command(agent: RunningAgent) -> None:
    with agent.client() as client:
        for _ in range(5):
            stream(client, START, bash("true & exec true"))
        children = psutil.Process(agent.process.pid).children()

    assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []


def test_a_silent_stream_is_kept_alive_at_the_interval_asked_for(agent: RunningAgent) -> None:
    silent, headers = envelope(bash("sleep 1000")), {**HEADERS, "Keepalive-Ping-Interval": "1"}
    with agent.client() as client, client.stream("POST", START, content=silent, headers=headers) as answer:
        envelopes = envelopes_in(answer.iter_raw())
        pid = next(envelopes)[1]["event"]["start"]["pid"]
        received = [next(envelopes) for _ in range(2)]
        call(client, "SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})

    assert received == [(0, {"event": {"keepalive": {}}})] * 2


def test_the_command_waits_for_everyone_who_holds_its_output(agent: RunningAgent) -> None:
    with agent.client() as client:
        envelopes = stream(client, START, bash("(sleep 0.5; echo late) & echo early"))

    assert output(envelopes) == b"early\nlate\n"


def test_a_kill_ends_the_stream_although_the_output_is_still_held_open(agent: RunningAgent) -> None:
    with agent.client() as client, agent.client() as other:
        message = envelope(bash("setsid sleep 20 & echo $!; wait"))
        with client.stream("POST", START, content=message, headers=HEADERS) as answer:
            envelopes = envelopes_in(answer.iter_raw())
            pid = next(envelopes)[1]["event"]["start"]["pid"]
            next(envelopes)
            signalled = call(other, "SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
            rest = list(envelopes)

    assert (signalled.status_code, signalled.json()) == (200, {})
    assert [content for _, content in rest][-2]["event"]["end"]["status"] == "signal: killed"
    assert rest[-1] == (2, {})


def test_a_hang_up_does_not_end_the_command(agent: RunningAgent) -> None:
    with agent.client() as client:
        message = envelope(bash("read line; echo got $line > outlived", tag="left-alone"))
        with client.stream("POST", START, content=message, headers=HEADERS) as answer:
            next(envelopes_in(answer.iter_raw()))
        encoded = base64.b64encode(b"word\n").decode()
        sent = call(client, "SendInput", {"process": {"tag": "left-alone"}, "input": {"stdin": encoded}})
        end = stream(client, CONNECT, {"process": {"tag": "left-alone"}})[-2:]

    assert sent.status_code == 200
    assert end[0][1]["event"]["end"]["exitCode"] == 0
    assert (agent.home / "outlived").read_text() == "got word\n"


def test_a_reader_that_is_gone_does_not_hold_up_a_talkative_command(agent: RunningAgent) -> None:
    with agent.client() as client:
        message = envelope(bash("head -c 20000000 /dev/zero; echo done > talked", tag="talkative"))
        with client.stream("POST", START, content=message, headers=HEADERS) as answer:
            next(envelopes_in(answer.iter_raw()))
        stream(client, CONNECT, {"process": {"tag": "talkative"}})

    assert (agent.home / "talked").read_text() == "done\n"


def test_every_listener_hears_everything_from_when_it_came(agent: RunningAgent) -> None:
    with agent.client() as first, agent.client() as second, agent.client() as sender:
        message = envelope(bash("read a; echo $a; read b; echo $b", tag="shared"))
        selector = {"process": {"tag": "shared"}}

        def say(line: str) -> None:
            encoded = base64.b64encode(line.encode()).decode()
            assert call(sender, "SendInput", {**selector, "input": {"stdin": encoded}}).status_code == 200

        with first.stream("POST", START, content=message, headers=HEADERS) as one:
            heard_by_one = envelopes_in(one.iter_raw())
            start = next(heard_by_one)
            say("1\n")
            assert output([next(heard_by_one)]) == b"1\n"
            with second.stream("POST", CONNECT, content=envelope(selector), headers=HEADERS) as two:
                heard_by_two = envelopes_in(two.iter_raw())
                assert next(heard_by_two) == start
                say("2\n")
                rest_of_two = list(heard_by_two)
            rest_of_one = list(heard_by_one)

    assert output(rest_of_one) == output(rest_of_two) == b"2\n"
    assert rest_of_one[-1] == rest_of_two[-1] == (2, {})


def test_list_has_running_processes_only_with_their_configuration_as_given(agent: RunningAgent) -> None:
    config = {"cmd": "/bin/sleep", "args": ["1000"], "envs": {"A": "b"}, "cwd": "/usr"}
    with agent.client() as client:
        with client.stream(
            "POST", START, content=envelope({"process": config, "tag": "listed"}), headers=HEADERS
        ) as answer:
            pid = next(envelopes_in(answer.iter_raw()))[1]["event"]["start"]["pid"]
        running = call(client, "List", {}).json()["processes"]
        call(client, "SendSignal", {"process": {"pid": pid}, "signal": 9})
        stream(client, CONNECT, {"process": {"pid": pid}})
        afterwards = call(client, "List", {}).json()["processes"]

    assert [process for process in running if process["pid"] == pid] == [
        {"config": config, "pid": pid, "tag": "listed"}
    ]
    assert pid not in [process["pid"] for process in afterwards]


def test_calls_about_an_unknown_process_are_not_found(agent: RunningAgent) -> None:
    nobody = {"process": {"pid": 999999}}
    with agent.client() as client:
        answers = [
            call(client, "SendSignal", {**nobody, "signal": "SIGNAL_SIGKILL"}),
            call(client, "SendInput", {**nobody, "input": {"stdin": ""}}),
            call(client, "CloseStdin", nobody),
            call(client, "Update", nobody),
        ]
        [end] = stream(client, CONNECT, {"process": {"tag": "no such"}})

    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (404, {"code": "not_found", "message": "process with pid 999999 not found"})
    ] * 4
    assert end == (2, {"error": {"code": "not_found", "message": "process with tag 'no such' not found"}})


def test_input_after_the_end_of_stdin_is_refused(agent: RunningAgent) -> None:
    with agent.client() as client:
        with client.stream("POST", START, content=envelope(bash("sleep 1000")), headers=HEADERS) as answer:
            pid = next(envelopes_in(answer.iter_raw()))[1]["event"]["start"]["pid"]
        selector = {"process": {"pid": pid}}
        closed = call(client, "CloseStdin", selector)
        sent = call(client, "SendInput", {**selector, "input": {"stdin": "eA=="}})
        call(client, "SendSignal", {**selector, "signal": "SIGNAL_SIGKILL"})

    assert closed.status_code == 200
    assert sent.json() == {"code": "internal", "message": "error writing to stdin: it is closed"}


def test_streamed_input_for_a_process_that_has_ended_is_refused(agent: RunningAgent) -> None:
    with agent.client() as client, agent.client() as other:
        with client.stream("POST", START, content=envelope(bash("read line")), headers=HEADERS) as answer:
            pid = next(envelopes_in(answer.iter_raw()))[1]["event"]["start"]["pid"]
        selector = {"process": {"pid": pid}}
        line = envelope({"data": {"input": {"stdin": base64.b64encode(b"line\n").decode()}}})

        def messages() -> Iterator[bytes]:
            yield envelope({"start": selector}) + line
            stream(other, CONNECT, selector)
            yield line

        answer = client.post("/process.Process/StreamInput", content=messages(), headers=HEADERS)

    [(flags, content)] = envelopes_in(iter([answer.content]))
    message = f"process with pid {pid} not found"
    assert (flags, content) == (2, {"error": {"code": "not_found", "message": message}})


def test_other_signals_are_unimplemented(agent: RunningAgent) -> None:
    with agent.client() as client:
        with client.stream("POST", START, content=envelope(bash("sleep 1000")), headers=HEADERS) as answer:
            pid = next(envelopes_in(answer.iter_raw()))[1]["event"]["start"]["pid"]
        answer = call(client, "SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGHUP"})
        call(client, "SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"})
        end = stream(client, CONNECT, {"process": {"pid": pid}})[-2]

    assert (answer.status_code, answer.json()["code"]) == (501, "unimplemented")
    assert end[1]["event"]["end"]["status"] == "signal: terminated"


async def test_two_hundred_commands_run_at_once(agent: RunningAgent) -> None:
    """Each waits for a file that is made once all of them are listed."""
    limits = httpx.Limits(max_connections=None)

    async with agent.async_client(limits=limits, timeout=120) as client, asyncio.TaskGroup() as tasks:

        async def run(number: int) -> bytes:
            script = f"until [ -e all-there ]; do sleep 0.2; done; echo {number}"
            answer = await client.post(START, content=envelope(bash(script, tag="crowd")), headers=HEADERS)
            return output(list(envelopes_in(iter([answer.content]))))

        async def count() -> int:
            answer = await client.post("/process.Process/List", json={})
            return sum(process.get("tag") == "crowd" for process in answer.json()["processes"])

        running = [tasks.create_task(run(number)) for number in range(200)]
        while await count() < 200:  # noqa: ASYNC110 - the event is in another process
            await asyncio.sleep(0.1)
        await client.post("/files?path=all-there", files={"file": b""})

    assert [task.result() for task in running] == [f"{number}\n".encode() for number in range(200)]
