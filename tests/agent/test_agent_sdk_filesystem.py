"""Directories, facts about files, and watching, through the official Python SDK."""

import asyncio
import os

import pytest
from e2b import FileNotFoundException, FilesystemEvent, FilesystemEventType, FileType, InvalidArgumentException

from tests.agent.running_agent import RunningAgent

CREATE, CHMOD, WRITE = FilesystemEventType.CREATE, FilesystemEventType.CHMOD, FilesystemEventType.WRITE
REMOVE, RENAME = FilesystemEventType.REMOVE, FilesystemEventType.RENAME


def seen(events: list[FilesystemEvent]) -> list[tuple[FilesystemEventType, str]]:
    return [(event.type, event.name) for event in events]


def test_the_facts_of_a_file_are_told(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("facts.txt", "test", metadata={"purpose": "facts"})

    info = sandbox.files.get_info("facts.txt")

    assert (info.name, info.type, info.path) == ("facts.txt", FileType.FILE, f"{agent.home}/facts.txt")
    assert (info.size, info.mode, info.permissions) == (4, 0o644, "-rw-r--r--")
    assert (info.owner, info.group, info.symlink_target) == ("user", "user", None)
    assert info.metadata == {"purpose": "facts"}
    assert info.modified_time.timestamp() == pytest.approx((agent.home / "facts.txt").stat().st_mtime, abs=0.001)


def test_a_directory_is_made_once(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()

    assert sandbox.files.make_dir("made/deep") is True
    assert sandbox.files.make_dir("made/deep") is False

    info = sandbox.files.get_info("made/deep")
    assert (info.type, info.permissions, info.owner) == (FileType.DIR, "drwxr-xr-x", "user")


def test_a_directory_cannot_be_made_where_a_file_is(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("in-the-way", "x")

    with pytest.raises(InvalidArgumentException, match="already exists and is not a directory"):
        sandbox.files.make_dir("in-the-way")
    with pytest.raises(InvalidArgumentException, match="has a parent that is not a directory"):
        sandbox.files.make_dir("in-the-way/below")


def test_a_link_shows_its_target(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.commands.run("mkdir links; cd links; echo x > file; mkdir dir; ln -s file f; ln -s dir d; ln -s gone g")

    links = {entry.name: entry for entry in sandbox.files.list("links")}

    base = f"{agent.home}/links"
    assert [
        (links[name].type, links[name].permissions, links[name].symlink_target, links[name].mode) for name in "fdg"
    ] == [
        (FileType.FILE, "Lrwxrwxrwx", f"{base}/file", 0o644),
        (FileType.DIR, "Lrwxrwxrwx", f"{base}/dir", 0o755),
        (FileType.FILE, "Lrwxrwxrwx", f"{base}/gone", 0o777),
    ]
    assert sandbox.files.exists("links/g") is True


def test_a_listing_has_parents_before_children_and_names_in_order(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.commands.run("mkdir -p tree/b/c/d tree/a; touch tree/file tree/b/file; ln -s ../tree tree/loop")

    def names(depth: int) -> list[str]:
        return [os.path.relpath(entry.path, agent.home / "tree") for entry in sandbox.files.list("tree", depth=depth)]

    assert names(1) == ["a", "b", "file", "loop"]
    assert names(2) == ["a", "b", "b/c", "b/file", "file", "loop"]
    assert names(9) == ["a", "b", "b/c", "b/c/d", "b/file", "file", "loop"]


def test_only_a_directory_that_exists_can_be_listed(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("no-directory", "x")

    with pytest.raises(FileNotFoundException):
        sandbox.files.list("missing")
    with pytest.raises(InvalidArgumentException, match="is not a directory"):
        sandbox.files.list("no-directory")


def test_a_file_moves_to_a_directory_that_is_made_for_it(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("here", "x")

    moved = sandbox.files.rename("here", "there/now")

    assert (moved.path, sandbox.files.read("there/now")) == (f"{agent.home}/there/now", "x")
    assert sandbox.files.exists("here") is False
    with pytest.raises(FileNotFoundException, match="here' does not exist"):
        sandbox.files.rename("here", "elsewhere")


def test_a_directory_moves_to_another_file_system(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("crossing/deep/file", "x")
    other = f"{agent.directory}/small/crossed"

    sandbox.files.rename("crossing", other)

    assert sandbox.files.read(f"{other}/deep/file") == "x"
    assert sandbox.files.exists("crossing") is False


def test_removing_takes_everything_below_and_can_be_repeated(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.commands.run("mkdir -p remove/deep keep; touch remove/deep/file keep/file; ln -s ~/keep remove/link")

    sandbox.files.remove("remove")
    sandbox.files.remove("remove")

    assert sandbox.files.exists("remove") is False
    assert sandbox.files.exists("keep/file") is True


def test_the_tree_is_changed_where_the_user_has_no_rights_and_what_is_made_is_the_user_s(agent: RunningAgent) -> None:
    closed = agent.directory / "closed-tree"
    closed.mkdir(mode=0o700)
    sandbox = agent.sandbox()

    sandbox.files.make_dir(f"{closed}/a/b")
    sandbox.files.write(f"{closed}/a/file", "x")
    moved = sandbox.files.rename(f"{closed}/a/file", f"{closed}/c/d/file")

    assert [entry.name for entry in sandbox.files.list(str(closed), depth=3)] == ["a", "b", "c", "d", "file"]
    owners = {entry.owner for entry in sandbox.files.list(str(closed), depth=3)}
    assert (owners, moved.owner, os.stat(closed).st_uid) == ({"user"}, "user", 0)
    sandbox.files.remove(f"{closed}/a")
    assert sandbox.files.exists(f"{closed}/a") is False


def test_a_move_to_another_file_system_keeps_owners_modes_and_links(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.commands.run(
        "mkdir -p mixed/own; touch mixed/own/script mixed/roots; ln -s own mixed/link; chown -h user mixed/link"
        "; chown -R user mixed/own; chmod 4755 mixed/own/script; chmod 700 mixed/own; chown root mixed/roots",
        user="root",
        cwd=str(agent.home),
    )

    sandbox.files.rename("mixed", f"{agent.directory}/small/mixed")

    listing = sandbox.commands.run(
        f"cd {agent.directory}/small && find mixed -printf '%p %u %m %l\\n' | sort", user="root"
    )
    assert listing.stdout.splitlines() == [
        "mixed root 755 ",
        "mixed/link user 777 own",
        "mixed/own user 700 ",
        "mixed/own/script user 4755 ",
        "mixed/roots root 644 ",
    ]


def test_a_directory_has_a_size(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("sized")

    assert sandbox.files.get_info("sized").size > 0


def test_a_tree_deeper_than_a_program_s_stack_is_listed_and_watched(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    depth = 1500
    sandbox.commands.run(f"mkdir -p deep/{'d/' * depth}")

    handle = sandbox.files.watch_dir("deep", recursive=True)
    assert len(sandbox.files.list("deep", depth=depth + 1)) == depth
    handle.stop()
    with pytest.raises(InvalidArgumentException, match="nested too deeply"):
        sandbox.files.remove("deep")
    sandbox.commands.run("rm -r deep")


def test_names_that_are_no_text_are_listed_and_watched(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("odd")
    handle = sandbox.files.watch_dir("odd")

    sandbox.commands.run("touch odd/$'caf\\xe9'")

    assert [entry.name for entry in sandbox.files.list("odd")] == ["caf\ufffd"]
    assert seen(handle.get_new_events())[0] == (CREATE, "caf\ufffd")
    handle.stop()


def test_metadata_survives_on_a_file_system_without_attributes(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    path = f"{agent.directory}/plain/described"

    sandbox.files.write(path, "x", metadata={"kind": "kept"})

    assert sandbox.files.get_info(path).metadata == {"kind": "kept"}


def test_writing_a_new_file_is_exactly_three_events(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched")

    sandbox.files.write("watched/new.txt", "content " * 50_000)
    first = handle.get_new_events()
    sandbox.files.write("watched/new.txt", "other")
    second = handle.get_new_events()
    handle.stop()

    assert seen(first) == [(CREATE, "new.txt"), (CHMOD, "new.txt"), (WRITE, "new.txt")]
    assert set(seen(second)) == {(WRITE, "new.txt")}


def test_every_kind_of_change_has_its_event(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("changes")
    handle = sandbox.files.watch_dir("changes")

    sandbox.commands.run("cd changes; : > a; echo x >> a; chmod 600 a; mv a b; rm b; mkdir d; rmdir d")
    events = seen(handle.get_new_events())
    handle.stop()

    assert events == [
        (CREATE, "a"),
        (WRITE, "a"),
        (CHMOD, "a"),
        (RENAME, "a"),
        (CREATE, "b"),
        (REMOVE, "b"),
        (CREATE, "d"),
        (REMOVE, "d"),
    ]


def test_a_plain_watcher_does_not_look_below(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("shallow/below")
    handle = sandbox.files.watch_dir("shallow")

    sandbox.files.write("shallow/below/file", "x")

    assert handle.get_new_events() == []
    handle.stop()


def test_a_recursive_watcher_sees_what_happens_in_new_directories_at_once(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("deep/known")
    handle = sandbox.files.watch_dir("deep", recursive=True)

    sandbox.files.write("deep/known/file", "x")
    known = seen(handle.get_new_events())
    sandbox.commands.run("cd deep; mkdir -p new/er/est; echo x > new/er/est/file")
    new = seen(handle.get_new_events())
    sandbox.commands.run("cd deep; echo y >> new/er/est/file")
    later = seen(handle.get_new_events())
    handle.stop()

    assert known == [(CREATE, "known/file"), (CHMOD, "known/file"), (WRITE, "known/file")]
    created = [name for kind, name in new if kind == CREATE]
    assert created == ["new", "new/er", "new/er/est", "new/er/est/file"]
    assert (WRITE, "new/er/est/file") in new
    assert later == [(WRITE, "new/er/est/file")]


def test_a_directory_that_moves_is_watched_under_its_new_name_only(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("moving/old/deep")
    handle = sandbox.files.watch_dir("moving", recursive=True)

    sandbox.files.rename("moving/old", "moving/new")
    handle.get_new_events()
    sandbox.files.write("moving/new/deep/file", "x")

    assert seen(handle.get_new_events())[0] == (CREATE, "new/deep/file")
    handle.stop()


def test_a_file_that_came_with_its_directory_is_told_of_when_it_is_made_anew(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("filled")
    sandbox.files.write("outside/file", "x")
    handle = sandbox.files.watch_dir("filled", recursive=True)

    sandbox.files.rename("outside", "filled/came")
    came = seen(handle.get_new_events())
    sandbox.commands.run("rm filled/came/file")
    removed = seen(handle.get_new_events())
    sandbox.commands.run("echo y > filled/came/file")
    made_anew = seen(handle.get_new_events())
    handle.stop()

    assert came == [(CREATE, "came"), (CREATE, "came/file"), (WRITE, "came/file")]
    assert removed == [(REMOVE, "came/file")]
    assert made_anew == [(CREATE, "came/file"), (WRITE, "came/file")]


def test_events_carry_the_entry_when_asked_to(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.make_dir("with-entry")
    handle = sandbox.files.watch_dir("with-entry", include_entry=True)

    sandbox.files.write("with-entry/file", "four")
    sandbox.files.remove("with-entry/file")
    events = handle.get_new_events()
    handle.stop()

    assert events[-1].type == REMOVE
    assert events[-1].entry is None


def test_only_a_directory_that_exists_can_be_watched(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    sandbox.files.write("not-a-directory", "x")

    with pytest.raises(FileNotFoundException):
        sandbox.files.watch_dir("missing")
    with pytest.raises(InvalidArgumentException, match="is not a directory"):
        sandbox.files.watch_dir("not-a-directory")


def test_a_stopped_watcher_is_gone(agent: RunningAgent) -> None:
    sandbox = agent.sandbox()
    handle = sandbox.files.watch_dir(".")
    handle.stop()

    with pytest.raises(Exception, match="stopped|not found"):
        handle.get_new_events()


async def test_events_are_streamed_as_they_happen(agent: RunningAgent) -> None:
    sandbox = agent.async_sandbox()
    await sandbox.files.make_dir("streamed")
    events: asyncio.Queue[FilesystemEvent] = asyncio.Queue()

    handle = await sandbox.files.watch_dir("streamed", on_event=events.put, include_entry=True)
    await sandbox.files.write("streamed/file", "four")
    async with asyncio.timeout(30):
        arrived = [await events.get() for _ in range(3)]
    await handle.stop()  # type: ignore[no-untyped-call]  # the SDK's own

    assert seen(arrived) == [(CREATE, "file"), (CHMOD, "file"), (WRITE, "file")]
    assert arrived[-1].entry is not None
    assert (arrived[-1].entry.path, arrived[-1].entry.size) == (f"{agent.home}/streamed/file", 4)
