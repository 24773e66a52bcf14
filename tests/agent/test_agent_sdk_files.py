"""Files through the official Python SDK."""

import io
import os
from pathlib import Path

import pytest
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    InvalidArgumentException,
    NotEnoughSpaceException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry

from tests.agent.running_agent import USER_UID, RunningAgent


def test_a_text_written_can_be_read_back(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()

    written = sandbox.files.write("notes/grüße.txt", "hällo\n")

    assert written.path == f"{agent.home}/notes/grüße.txt"
    assert written.name == "grüße.txt"
    assert sandbox.files.read("notes/grüße.txt") == "hällo\n"
    assert sandbox.files.read(f"{agent.home}/notes/grüße.txt") == "hällo\n"


def test_a_new_file_and_its_parents_belong_to_the_user(agent: RunningAgent) -> None:
    agent.sandbox().files.write("a/b/new", "x")

    facts = {name: (agent.home / name).stat() for name in ("a", "a/b", "a/b/new")}
    assert {(name, fact.st_uid, fact.st_gid, oct(fact.st_mode & 0o777)) for name, fact in facts.items()} == {
        ("a", USER_UID, USER_UID, "0o755"),
        ("a/b", USER_UID, USER_UID, "0o755"),
        ("a/b/new", USER_UID, USER_UID, "0o644"),
    }


def test_an_overwritten_file_is_truncated_and_keeps_its_mode(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("script.sh", "a long first version")
    sandbox.commands.run("chmod 755 script.sh")

    sandbox.files.write("script.sh", "short")

    assert sandbox.files.read("script.sh") == "short"
    assert sandbox.commands.run("stat -c %a script.sh").stdout == "755\n"


def test_several_files_go_to_their_own_directories(agent: RunningAgent) -> None:
    files = [
        WriteEntry(path="many/one/same.txt", data="1"),
        WriteEntry(path=f"{agent.home}/many/two/same.txt", data=b"2"),
        WriteEntry(path='many/näme with "quotes" & 100%.txt'.replace('"', "'"), data="3"),
    ]
    sandbox = agent.sandbox()

    written = sandbox.files.write_files(files)

    assert [entry.path for entry in written] == [
        f"{agent.home}/many/one/same.txt",
        f"{agent.home}/many/two/same.txt",
        f"{agent.home}/many/näme with 'quotes' & 100%.txt",
    ]
    assert [sandbox.files.read(entry.path) for entry in written] == ["1", "2", "3"]


def test_an_empty_file_is_empty(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("empty", "")

    assert sandbox.files.read("empty") == ""


def test_bytes_and_streams_pass_unchanged(agent: RunningAgent) -> None:
    content = os.urandom(3 << 20)
    sandbox = agent.sandbox()

    sandbox.files.write("bytes", content)
    sandbox.files.write("stream", io.BytesIO(content))
    sandbox.files.write("zipped", content, gzip=True)

    assert sandbox.files.read("bytes", format="bytes") == content
    assert b"".join(sandbox.files.read("stream", format="stream")) == content
    assert sandbox.files.read("zipped", format="bytes", gzip=True) == content


def test_metadata_comes_back_with_the_upload(agent: RunningAgent) -> None:
    written = agent.sandbox().files.write("tagged", "x", metadata={"Purpose": "test"})

    assert written.metadata == {"purpose": "test"}
    assert os.getxattr(agent.home / "tagged", "user.e2b.purpose") == b"test"


def test_a_file_of_proc_is_read_although_it_says_it_is_empty(agent: RunningAgent) -> None:
    expected = Path("/proc/sys/kernel/random/boot_id").read_text()

    assert agent.sandbox().files.read("/proc/sys/kernel/random/boot_id") == expected


def test_a_missing_file_is_not_found(agent: RunningAgent) -> None:
    with pytest.raises(FileNotFoundException, match=r"path '.*/missing' does not exist"):
        agent.sandbox().files.read("missing")


def test_a_directory_cannot_be_read_or_overwritten_as_a_file(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.commands.run("mkdir -p folder")

    with pytest.raises(InvalidArgumentException, match="is a directory"):
        sandbox.files.read("folder")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        sandbox.files.write("folder", "x")


def test_a_file_closed_to_the_user_is_read_all_the_same(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("secret", "s", user="root")
    sandbox.commands.run(f"chmod 600 {sandbox.files.get_info('secret', user='root').path}", user="root")

    assert sandbox.files.read("/root/secret") == "s"
    sandbox.files.remove("/root/secret")


def test_a_file_written_where_the_user_has_no_rights_belongs_to_the_user(agent: RunningAgent) -> None:
    closed = agent.directory / "closed"
    closed.mkdir(mode=0o700)
    sandbox = agent.sandbox()

    sandbox.files.write(f"{closed}/new/file", "x")

    assert _owner(closed) == 0
    assert _owner(closed / "new") == _owner(closed / "new" / "file") == USER_UID


def test_an_overwritten_file_goes_to_the_user_who_writes_it(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    path = agent.home / "handed-over"
    sandbox.files.write(str(path), "1", user="root")
    sandbox.files.write(str(path), "2", user="user")

    assert (_owner(path), path.read_text()) == (USER_UID, "2")


def test_a_file_written_through_a_dangling_link_belongs_to_the_user(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.commands.run("ln -s behind-the-link link")

    sandbox.files.write("link", "x")

    assert (_owner(agent.home / "behind-the-link"), sandbox.files.read("link")) == (USER_UID, "x")


def test_only_the_own_home_can_be_named_with_a_tilde(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("~/at-home", "x")

    assert sandbox.files.get_info("~/at-home").path == f"{agent.home}/at-home"
    with pytest.raises(InvalidArgumentException, match="only the user's own home"):
        sandbox.files.read("~root/file")


def test_an_unknown_user_is_refused(agent: RunningAgent) -> None:
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-knows'"):
        agent.sandbox().files.read("x", user="nobody-knows")


def test_a_full_disk_is_reported_and_leaves_no_part_of_a_new_file(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    path = f"{agent.directory}/small/too-large"

    with pytest.raises(NotEnoughSpaceException):
        sandbox.files.write(path, b"x" * (3 << 20))

    assert sandbox.commands.run(f"ls {agent.directory}/small").stdout == ""


def test_signed_addresses_open_one_file_each_way(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("signed", "before")

    with agent.client(headers={}) as client:
        upload = client.post(sandbox.upload_url("signed"), files={"file": b"after"})
        download = client.get(sandbox.download_url("signed", use_signature_expiration=60))
        expired = client.get(sandbox.download_url("signed", use_signature_expiration=-60))

    assert (upload.status_code, download.status_code, download.text) == (200, 200, "after")
    assert (expired.status_code, expired.json()) == (401, {"code": 401, "message": "signature is already expired"})


def _owner(path: Path) -> int:
    return path.stat().st_uid
