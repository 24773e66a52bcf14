"""What servers write on stderr, on its way to a file and to their status."""

from pathlib import Path

from sandgate_gateway.upstreams.stdio import StderrLog


def test_a_full_disk_costs_the_file_and_not_the_lines() -> None:
    log = StderrLog(Path("/dev/full"))
    log.feed(b"first\nsec")
    log.feed(b"ond\n")
    assert log.snapshot() == ["first", "second"]
    log.close()
