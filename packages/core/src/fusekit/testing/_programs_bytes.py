"""Writes of every kind on a mount: shells, dd, sed, mapped memory, unlinked files: a part of the program suite.

Outside the layers; see `fusekit.testing.programs`.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

import pytest

from fusekit.testing._programs_base import Place, ProgramBase, needs

MIB: Final = 1 << 20
_BIG: Final = 9 * MIB


class Bytes(ProgramBase):
    """Programs that change the content of files."""

    def test_sed_i_changes_a_file_in_its_place(self, place: Place) -> None:
        (place.path / "a.txt").write_bytes(b"one\ntwo\n" * 1000)
        (place.path / "a.txt").chmod(0o640)
        place.run("sed", "-i", "s/two/2/", "a.txt")
        assert stat.S_IMODE((place.path / "a.txt").stat().st_mode) == 0o640
        place.check({"a.txt": b"one\n2\n" * 1000})
        place.run("sed", "-i.bak", "1d", "a.txt")
        place.check({"a.txt": b"2\n" + b"one\n2\n" * 999, "a.txt.bak": b"one\n2\n" * 1000})

    def test_sort_and_tee_write_over_what_they_read(self, place: Place) -> None:
        (place.path / "a").write_bytes(b"b\nc\na\n")
        place.sh("sort -o a a; printf 'd\\n' | tee -a a > copy; sort -r a | tee reversed > /dev/null")
        place.check({"a": b"a\nb\nc\nd\n", "copy": b"d\n", "reversed": b"d\nc\nb\na\n"})

    def test_dd_writes_syncs_and_patches(self, place: Place) -> None:
        data = os.urandom(300_000)
        (place.outside / "in").write_bytes(data)
        place.run("dd", f"if={place.outside}/in", "of=out", "bs=64K", "conv=fsync", "status=none")
        place.check({"out": data})
        place.run("dd", f"if={place.outside}/in", "of=out", "bs=64K", "oflag=sync", "status=none")
        place.run("dd", "of=out", "bs=1", "seek=70000", "conv=notrunc,fsync", "status=none", input=b"patched")
        patched = data[:70000] + b"patched" + data[70007:]
        place.check({"out": patched})
        place.run("dd", "of=hole", "bs=1", "seek=100000", "conv=fsync", "status=none", input=b"end")
        place.check({"out": patched, "hole": bytes(100_000) + b"end"})

    def test_an_append_loop_keeps_every_line(self, place: Place) -> None:
        place.sh("for n in $(seq 50); do echo line $n >> log; done")
        place.check({"log": b"".join(b"line %d\n" % number for number in range(1, 51))})
        place.sh("exec >> log; for n in $(seq 51 60); do echo line $n; done")
        place.check({"log": b"".join(b"line %d\n" % number for number in range(1, 61))})

    def test_two_writers_on_different_files_do_not_mix(self, place: Place) -> None:
        code = """
            import os, sys
            name = sys.argv[1].encode()
            for round in range(5):
                with open(name, 'wb') as file:
                    for number in range(200):
                        file.write(name * 50); file.flush()
                    if round % 2: os.fsync(file.fileno())
        """
        script = place.outside / "writer.py"
        script.write_text("\n".join(line.strip(" ") and line[12:] for line in code.splitlines()))
        writers = [place.start(sys.executable, str(script), name) for name in ("a", "b")]
        for writer in writers:
            _, said = writer.communicate(timeout=60)
            assert writer.returncode == 0, said.decode()
        place.check({"a": b"a" * 10_000, "b": b"b" * 10_000})

    def test_two_writers_of_one_file_append_in_turn(self, place: Place) -> None:
        place.sh(
            "(for n in $(seq 20); do echo a $n; done >> log) & for n in $(seq 20); do echo b $n; done >> log; wait"
        )
        lines = (place.path / "log").read_text().splitlines()
        assert sorted(lines) == sorted(f"{who} {number}" for who in "ab" for number in range(1, 21))
        place.agree()

    # ---- mapped memory; in other processes, because a page fault holds the interpreter that it happens in

    @pytest.mark.parametrize("closed_first", [False, True], ids=["open", "closed"])
    def test_what_is_written_through_a_mapping_arrives(self, place: Place, closed_first: bool) -> None:
        data = bytearray(os.urandom(200_000))
        (place.path / "f").write_bytes(data)
        place.python(
            f"""
            import mmap, os
            fd = os.open('f', os.O_RDWR)
            mapped = mmap.mmap(fd, 0)
            if {closed_first}: os.close(fd)
            mapped[0:5] = b'start'; mapped[100000:100006] = b'middle'; mapped[-3:] = b'end'
            assert mapped[99999:100007][1:-1] == b'middle'
            mapped.flush(); mapped.close()
            if not {closed_first}: os.close(fd)
            """
        )
        data[0:5], data[100_000:100_006], data[-3:] = b"start", b"middle", b"end"
        place.check({"f": bytes(data)})

    def test_what_is_written_through_a_mapping_without_msync_arrives_at_close(self, place: Place) -> None:
        (place.path / "f").write_bytes(bytes(50_000))
        place.python(
            """
            import mmap, os
            fd = os.open('f', os.O_RDWR)
            mapped = mmap.mmap(fd, 0)
            mapped[40000:40004] = b'late'
            mapped.close()
            os.close(fd)
            """
        )
        place.check({"f": bytes(40_000) + b"late" + bytes(9_996)})

    def test_a_mapping_of_a_new_file_that_was_extended_arrives(self, place: Place) -> None:
        place.python(
            """
            import mmap, os
            fd = os.open('new', os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 70000)
            mapped = mmap.mmap(fd, 70000)
            mapped[:] = b'm' * 70000
            mapped.flush(); mapped.close(); os.close(fd)
            """
        )
        place.check({"new": b"m" * 70_000})

    def test_mapped_reads_see_what_was_written(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"before" * 10_000)
        said = place.python(
            """
            import mmap
            with open('f', 'r+b') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                first = mapped[:6]
                file.write(b'after!'); file.flush()
                print(first.decode(), mapped[:6].decode(), mapped[6:12].decode())
            """
        )
        assert said == "before after! before\n"
        place.check({"f": b"after!" + b"before" * 9_999})

    # ---- names that go while files are open

    def test_an_unlinked_open_file_can_be_used_to_its_end(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"x" * 100_000)
        said = place.python(
            """
            import os
            file, new = open('f', 'r+b'), open('new', 'w+b')
            new.write(b'never sent'); new.flush()
            os.unlink('f'); os.unlink('new')
            assert os.listdir('.') == []
            assert len(file.read()) == 100000
            file.seek(50); file.write(b'changed'); file.flush(); file.seek(49)
            new.seek(0)
            print(file.read(9).decode(), new.read().decode(), os.fstat(file.fileno()).st_nlink)
            os.fsync(file.fileno())
            open('f', 'w').write('another')
            file.close(); new.close()
            """
        )
        assert said == "xchangedx never sent 0\n"
        place.check({"f": b"another"})

    def test_a_replaced_open_file_keeps_its_old_content(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"old content")
        said = place.python(
            """
            import os
            old = open('f', 'rb')
            open('tmp', 'wb').write(b'new content!')
            os.replace('tmp', 'f')
            print(old.read().decode(), open('f').read())
            """
        )
        assert said == "old content new content!\n"
        place.check({"f": b"new content!"})

    # ---- what shells and coreutils do all day

    def test_touch_makes_and_leaves_content_alone(self, place: Place) -> None:
        place.sh("touch new; echo content > old; touch old; touch -d '2001-02-03 04:05:06 UTC' old; touch -c none")
        assert (place.path / "old").stat().st_mtime == 981173106
        place.check({"new": b"", "old": b"content\n"})

    def test_redirections_replace_and_empty_files(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"something long that must go away\n" * 100)
        place.sh("echo short > f; printf a > a; cat a f > b; cat a > a2; : > a; > emptied; cat f >> b")
        place.check({"f": b"short\n", "a": b"", "a2": b"a", "b": b"ashort\nshort\n", "emptied": b""})

    def test_a_here_document_and_a_descriptor_for_reading_and_writing(self, place: Place) -> None:
        place.sh("cat > f <<EOF\none\ntwo\nEOF\nexec 3<> f; head -c 4 <&3 >/dev/null; printf 'TWO' >&3; exec 3>&-")
        place.check({"f": b"one\nTWO\n"})

    def test_head_reads_the_first_bytes_only(self, place: Place) -> None:
        data = os.urandom(100_000)
        (place.path / "f").write_bytes(data)
        place.sh("head -c 1000 f > first; tail -c 1000 f > last; head -c 0 f > none")
        place.check({"f": data, "first": data[:1000], "last": data[-1000:], "none": b""})

    def test_truncate_cuts_and_extends(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"0123456789" * 1000)
        place.sh("truncate -s 15 f; truncate -s +5 f; truncate -s 3000 new; cp f g; truncate -s 0 g")
        place.check({"f": b"012345678901234" + bytes(5), "new": bytes(3000), "g": b""})

    def test_install_sets_the_mode(self, place: Place) -> None:
        (place.outside / "tool").write_bytes(b"#!/bin/sh\necho installed\n")
        place.run("install", "-D", "-m", "755", str(place.outside / "tool"), "bin/tool")
        assert stat.S_IMODE((place.path / "bin" / "tool").stat().st_mode) == 0o755
        assert place.run("./bin/tool") == "installed\n"
        place.run("install", "-m", "600", str(place.outside / "tool"), "bin/tool")
        assert stat.S_IMODE((place.path / "bin" / "tool").stat().st_mode) == 0o600
        place.check({"bin": None, "bin/tool": b"#!/bin/sh\necho installed\n"})

    def test_modes_owners_and_times_are_kept_as_set(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"x")
        (place.path / "d").mkdir()
        place.sh("chmod 601 f; chmod 711 d; chown $(id -u):$(id -g) f; touch -m -d @1234567890.5 f; touch -d @99 d")
        status, folder = (place.path / "f").stat(), (place.path / "d").stat()
        assert stat.S_IMODE(status.st_mode) == 0o601
        assert stat.S_IMODE(folder.st_mode) == 0o711
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert status.st_mtime_ns == 1_234_567_890_500_000_000
        assert folder.st_mtime == 99
        if os.getuid() == 0:
            place.run("chown", "1234:4321", "f")
            status = (place.path / "f").stat()
            assert (status.st_uid, status.st_gid) == (1234, 4321)
        place.run("mv", "f", "g")
        assert stat.S_IMODE((place.path / "g").stat().st_mode) == 0o601
        place.check({"g": b"x", "d": None})

    # ---- large files

    def test_a_large_file_is_copied_in_and_out(self, place: Place) -> None:
        data = os.urandom(_BIG)
        (place.outside / "in").write_bytes(data)
        place.run("cp", str(place.outside / "in"), "big")
        place.run("cp", "big", str(place.outside / "out"))
        assert (place.outside / "out").read_bytes() == data
        place.check({"big": data})
        place.sh("cp big copy; cmp big copy; rm big; printf tail >> copy")
        place.check({"copy": data + b"tail"})

    @needs("gzip")
    def test_gzip_replaces_files_by_their_compressed_form(self, place: Place) -> None:
        (place.path / "f").write_bytes(b"text " * 20_000)
        place.sh("gzip f; gzip -t f.gz; gzip -dk f.gz; rm f.gz")
        place.check({"f": b"text " * 20_000})

    def test_programs_run_from_the_mount(self, place: Place) -> None:
        place.sh("cp /bin/true t; chmod +x t; ./t; printf '#!/bin/sh\\necho \"$0\"\\n' > s; chmod +x s")
        assert place.run("./s") == "./s\n"
        true = Path("/bin/true").read_bytes()
        place.check({"t": true, "s": b'#!/bin/sh\necho "$0"\n'})

    @needs("flock")
    def test_locks_keep_writers_apart(self, place: Place) -> None:
        script = "for n in $(seq 10); do flock lock sh -c 'read -r n < count; echo $((n + 1)) > count'; done"
        place.sh("echo 0 > count; : > lock")
        both = [place.start("sh", "-euc", script) for _ in range(2)]
        for one in both:
            _, said = one.communicate(timeout=60)
            assert one.returncode == 0, said.decode()
        place.check({"count": b"20\n", "lock": b""})
