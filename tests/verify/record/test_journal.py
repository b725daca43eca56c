"""A journal survives: torn lines, full disks, two writers, interrupts; and it leads nowhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verify.full_disk import room_for
from verify.record.journal import Journal, RecordError

LINES = [b'{"kind":"a"}', '{"kind":"b","text":"\\n \u00e4"}'.encode(), b'{"n":[1,2,{"x":null}]}']
HOLDER = """
import sys, time
from pathlib import Path
from verify.record.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append(b'{"whose":"other"}')
print("open", flush=True)
time.sleep(60)
"""


def written(path: Path) -> bytes:
    journal = Journal(path)
    for line in LINES:
        journal.append(line)
    journal.close()
    return path.read_bytes()


def test_a_journal_that_is_cut_off_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "j"
    data = written(path)
    assert data == b"".join(line + b"\n" for line in LINES)
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        journal = Journal(path)
        whole = [line for line in LINES if data.index(line) + len(line) <= size]
        rest = size - sum(len(line) + 1 for line in whole)
        assert [line for _, line in journal.lines()] == whole, size
        assert journal.torn == max(0, rest), size
        journal.append(b'{"kind":"next"}')
        journal.close()
        assert path.read_bytes() == b"".join(line + b"\n" for line in (*whole, b'{"kind":"next"}')), size


@pytest.mark.parametrize("tail", [b"\0" * 9, b"[1]", b"12", b'"text"', b"\xff\xfe", b"[" * 5000])
def test_an_end_that_is_no_entry_is_cut_off(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j"
    data = written(path)
    path.write_bytes(data + tail)
    journal = Journal(path)
    assert journal.torn == len(tail)
    journal.close()
    assert path.read_bytes() == data


def test_a_line_is_found_again_by_its_offset(tmp_path: Path) -> None:
    written(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    assert [journal.line(offset, len(line)) for offset, line in journal.lines()] == LINES
    journal.close()


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    data = written(path)
    for room in range(12):
        journal = Journal(path)
        with room_for(len(data) + room), pytest.raises(OSError, match="too large"):
            journal.append(b'{"kind":"long"}')
        assert path.read_bytes() == data, room
        journal.close()
    with room_for(len(data) + len(LINES[0]) + 1):
        journal = Journal(path)
        journal.append(LINES[0])
        journal.close()
    assert path.read_bytes() == data + LINES[0] + b"\n"


def test_an_interrupt_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    data = written(path)
    journal = Journal(path)
    write = os.write

    def interrupted(file: int, rest: bytes) -> int:
        write(file, bytes(rest[:5]))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.append(b'{"kind":"long"}')
    monkeypatch.undo()
    journal.append(LINES[0])
    journal.close()
    assert path.read_bytes() == data + LINES[0] + b"\n"


def test_one_process_at_a_time_and_a_dead_one_no_longer_counts(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, cwd=Path.cwd()
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(RecordError, match="no other run"):
            Journal(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    journal = Journal(path)
    assert [line for _, line in journal.lines()] == [b'{"whose":"other"}']
    journal.close()


def test_no_process_that_is_started_keeps_the_lock(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
        journal.close()
        Journal(tmp_path / "j").close()
        child.kill()


def test_a_link_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(RecordError, match="regular file"):
            Journal(tmp_path / name)
    assert target.read_bytes() == b"precious"


def test_a_line_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "j")
    monkeypatch.setattr("verify.record.journal.MAX_LINE", 20)
    journal = Journal(tmp_path / "j")
    with pytest.raises(RecordError, match="at most 20 bytes"):
        list(journal.lines())
    journal.close()
