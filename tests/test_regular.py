"""Files that are read only where they hold bytes, and replaced in one step."""

import os
import re
import stat

import pytest

from pycls_std.core.regular import read_bytes, replace_text


def test_a_pipe_and_a_folder_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path, text in ((tmp_path / "pipe", "no regular file"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=f"{text}.*{re.escape(str(path))}"):
            read_bytes(path)


def test_a_file_is_replaced_in_one_step_and_a_link_to_it_stays(tmp_path):
    page, link = tmp_path / "page", tmp_path / "link"
    page.write_text("old")
    link.symlink_to(page)
    with page.open() as reader:
        replace_text(link, "new")
        assert reader.read() == "old"  # who had it open still has all of it
    assert link.is_symlink() and page.read_text() == "new"
    page.chmod(0o640)
    replace_text(page, "newer")
    assert stat.S_IMODE(page.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "page"]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    page = tmp_path / "page"
    page.write_text("old")
    for path in (tmp_path / "gone" / "page", page / "page", tmp_path):
        with pytest.raises(OSError, match=f"^{re.escape(str(path))} could not be written: "):
            replace_text(path, "new")

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="page could not be written: Operation not"):
        patched.setattr("pathlib.Path.replace", refuse)
        replace_text(page, "new")
    assert page.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """One with a name, and what /dev/stdout is in front of another program."""
    os.mkfifo(tmp_path / "pipe")
    named = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    unnamed, end = os.pipe()
    for reader, path in ((named, tmp_path / "pipe"), (unnamed, f"/dev/fd/{end}")):
        replace_text(path, "new")
        assert os.read(reader, 9) == b"new" and stat.S_ISFIFO(os.stat(path).st_mode)
    for descriptor in (named, unnamed, end):
        os.close(descriptor)
