"""`lmlab data fetch`: archives made here; no test touches the network."""

import dataclasses
import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from lmlab.lab.archives import FetchError, _bible_text, _lzw, brown, handbook, members
from lmlab.lab.corpus import documents
from lmlab.lab.fetch import CORPORA, Corpus, fetch
from lmlab.lab.options import CorpusOptions
from lmlab.lab.sources import find_sources

POEMS = [{"title": "春曉", "author": "孟浩然", "paragraphs": ["春眠不覺曉", "處處聞啼鳥"]}]


def tar(entries: dict[str, bytes | str], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A .tgz; a text value is the target of a link of `kind`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def tang(archive: bytes) -> Corpus:
    return dataclasses.replace(CORPORA["tang"], sha256=hashlib.sha256(archive).hexdigest())


@pytest.fixture
def archive() -> bytes:
    poems = json.dumps(POEMS).encode()
    return tar({"package/dist/yudingquantangshi/json/001.json": poems, "package/package.json": b"{}"})


def test_an_archive_that_is_here_becomes_a_corpus(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CORPORA, "tang", tang(archive))
    (tmp_path / "a.tgz").write_bytes(archive)
    target = fetch("tang", path=tmp_path / "a.tgz", to=tmp_path / "data")
    assert sorted(p.name for p in target.iterdir()) == ["SOURCE.json", "tang.jsonl"]
    assert json.loads((target / "SOURCE.json").read_text())["documents"] == 1
    options = CorpusOptions(name="tang")
    sources, skipped = find_sources(options, tmp_path, tmp_path / "data")
    texts = [text for source in sources for text in documents(source, options, skipped)]
    assert texts == ["春曉\n孟浩然\n春眠不覺曉\n處處聞啼鳥"]
    assert not skipped.counts


def test_a_wrong_hash_is_refused_and_nothing_is_kept(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(archive)
    with pytest.raises(FetchError, match=r"has SHA-256 .* expected .*; nothing was kept"):
        fetch("tang", path=tmp_path / "a.tgz", to=tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with pytest.raises(FetchError, match="can't be read"):
        fetch("tang", path=tmp_path / "none.tgz", to=tmp_path / "data")
    with pytest.raises(FetchError, match="no corpus 'x'; known: tang, kjv, brown, handbook-en, handbook-zh"):
        fetch("x")


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ({"../evil": b"x"}, tarfile.REGTYPE),
        ({"/etc/evil": b"x"}, tarfile.REGTYPE),
        ({"package/../../evil": b"x"}, tarfile.REGTYPE),
        ({"package/link": "../../etc/passwd"}, tarfile.SYMTYPE),
        ({"package/link": "../etc/passwd"}, tarfile.LNKTYPE),
    ],
)
def test_a_member_that_leads_outside_is_refused(
    entries: dict[str, bytes | str], kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tar({"package/dist/yudingquantangshi/json/001.json": json.dumps(POEMS).encode(), **entries}, kind)
    monkeypatch.setitem(CORPORA, "tang", tang(bad))
    (tmp_path / "a.tgz").write_bytes(bad)
    with pytest.raises(FetchError, match="leads outside; nothing was kept"):
        fetch("tang", path=tmp_path / "a.tgz", to=tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.jsonl")) and not list((tmp_path / "data").rglob("*tmp*"))


@pytest.mark.parametrize("damage", [b"", b"nothing", b"\x1f\x8b broken"])
def test_an_archive_that_is_none(damage: bytes) -> None:
    with pytest.raises(FetchError, match="can't be read"):
        list(members(damage))


def test_an_archive_without_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tar({"package/package.json": b"{}"})
    monkeypatch.setitem(CORPORA, "tang", tang(empty))
    (tmp_path / "a.tgz").write_bytes(empty)
    with pytest.raises(FetchError, match="holds no document; nothing was kept"):
        fetch("tang", path=tmp_path / "a.tgz", to=tmp_path / "data")


# --- through a client ---------------------------------------------------------------------------------------


def client(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program `npm` on the path that does what the script says."""
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_client_leaves_the_archive_in_a_folder_of_its_own(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CORPORA, "tang", tang(archive))
    (tmp_path / "a.tgz").write_bytes(archive)
    client(
        tmp_path / "bin",
        f'echo "$@" > {tmp_path}/said; cp {tmp_path}/a.tgz chinese-poetry-2.0.1.tgz',
        monkeypatch,
    )
    target = fetch("tang", to=tmp_path / "data")
    assert (target / "tang.jsonl").is_file()
    assert (tmp_path / "said").read_text() == "pack --silent chinese-poetry@2.0.1\n"


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"comes through `npm`, which is not installed.*--path FILE"):
        fetch("tang", to=tmp_path / "data")


def test_a_client_that_fails_is_tried_again_and_then_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmlab.retry.testing import testing

    client(tmp_path / "bin", f"echo x >> {tmp_path}/tries; echo 'no route to host' >&2; exit 1", monkeypatch)
    with testing(), pytest.raises(FetchError, match="failed: no route to host"):
        fetch("tang", to=tmp_path / "data")
    assert (tmp_path / "tries").read_text().count("x") == 3


# --- the King James Bible's own format ----------------------------------------------------------------------


def lzw(codes: list[int]) -> bytes:
    bits = "".join(f"{code:09b}"[::-1] for code in codes)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


def test_the_unix_compress_code_is_read() -> None:
    # "abababa": a b (ab=257) (aba=259, which is being made as it is read)
    assert _lzw(lzw([97, 98, 257, 259])) == b"abababa"
    assert _lzw(b"") == b""
    with pytest.raises(FetchError, match="damaged"):
        _lzw(lzw([97, 400]))
    with pytest.raises(FetchError, match="another format"):
        _bible_text(b"XX00")


def test_brown_is_read_without_its_tags() -> None:
    tagged = b"\n\n\tThe/at jury/nn said/vbd ,/, ``/`` no/at ''/'' (/( really/rb )/) ?/. ?/.\n\nYes/rb ./.\n"
    texts = list(brown(tar({"package/ca01": tagged, "package/README": b"x"})))
    assert texts == ['The jury said, "no" (really)?\nYes.']


def test_the_handbook_is_read_by_headings_paragraphs_and_listings() -> None:
    page = (
        "<html><body><p>menu</p><h2>1. <em>A</em> title</h2><div class='para'>\n\t One &amp; two"
        "<div class='para'>inner</div></div><pre>$ ls\n  a</pre><div class='other'>no</div></body></html>"
    )
    inside = tar({"./usr/share/doc/debian-handbook/html/zh-CN/a.html": page.encode(), "./usr/x.html": b"x"})
    header = b"data.tar.gz     0           0     0     100644  %-10d`\n" % len(inside)
    texts = list(handbook(b"!<arch>\n" + header + inside, "zh-CN"))
    assert texts == ["1. A title\nOne & two\ninner\n$ ls\n  a"]
    with pytest.raises(FetchError, match="no Debian package"):
        list(handbook(b"nothing", "zh-CN"))
