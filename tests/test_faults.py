"""Full disks, folders that cannot be written to, and kills: nothing half-written is taken for
whole, nothing measured is lost.

Training's faults (kills, checkpoints) are in test_training.py; two processes at once in
test_corpora.py and test_backbones.py.
"""

import contextlib
import resource
import sys
from pathlib import Path

import killed_study
import pytest
from forked import run_forked

import mtst_utils as mtst
from mtst_utils import packaged_weights
from mtst_utils.experiments import results, studies

ROOT = Path(__file__).parent.parent
NOWHERE = Path("/proc/mtst")  # not even root can make this folder
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the faults are made by Linux"
)


@contextlib.contextmanager
def room_for(size):
    """No file can grow beyond size bytes: what a full disk does, by the operating system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("bytes_left", [0, 1, 60])
def test_a_full_disk_while_a_run_is_written(tmp_path, monkeypatch, bytes_left):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.append("toy", "b", "s", 0, 10, {"score": 1.0}, 1)
    good = (tmp_path / "toy.csv").read_bytes()
    with (
        room_for(len(good) + bytes_left),
        pytest.raises(OSError, match=r"no room for another run .*File too large.*Make some"),
    ):
        results.append("toy", "b", "s", 1, 10, {"score": 2.0, "other": 3.0}, 1)
    assert (tmp_path / "toy.csv").read_bytes() == good
    results.append("toy", "b", "s", 1, 10, {"score": 2.0}, 1)
    assert results.load("toy").value.tolist() == [1.0, 2.0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.csv", "toy.lock"]


def test_a_full_disk_while_the_first_run_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with room_for(0), pytest.raises(OSError, match="no room for another run"):
        results.append("toy", "b", "s", 0, 10, {"score": 1.0}, 1)
    assert results.load("toy").empty
    results.append("toy", "b", "s", 0, 10, {"score": 1.0}, 1)
    assert results.load("toy").value.tolist() == [1.0]


def test_results_that_cannot_be_written_show_before_the_first_run(monkeypatch):
    monkeypatch.setattr(results, "RESULTS", NOWHERE)
    monkeypatch.setitem(studies.STUDIES, "toy", {"only": lambda *_: pytest.fail("it ran")})
    with pytest.raises(
        OSError, match=r"/proc/mtst cannot be written to .*make it writable, or copy the project"
    ):
        studies.run_study("toy", "b", seeds=1)


def test_a_killed_study_goes_on_where_it_was(tmp_path):
    [report] = run_forked(killed_study.run_and_kill, tmp_path)
    assert report["rows per run"] == [400]  # whole, after every kill
    assert report["runs at the kills"] == sorted(report["runs at the kills"])  # nothing was lost
    assert max(report["runs at the kills"]) < 40
    assert report["rows in the end"] == {seed: 400 for seed in range(40)}  # and none was run twice


def test_a_corpus_that_cannot_be_kept():
    with pytest.raises(
        mtst.CorpusNotAvailable,
        match=r"could not be written: .*or name a folder that can be written to",
    ):
        mtst.load_rated_sentences(NOWHERE)


def test_a_full_disk_while_the_corpus_is_fetched(
    tmp_path, capsys
):  # capsys: what is printed goes into no file
    with (
        room_for(10),
        pytest.raises(mtst.CorpusNotAvailable, match=r"could not be written: .*File too large"),
    ):
        mtst.load_rated_sentences(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["full", "not writable"])
def test_weights_that_cannot_be_joined(tmp_path, monkeypatch, where):
    (tmp_path / "x.zip.001").write_bytes(b"x" * 1000)

    class Piece:
        name = "x.zip.001"

        def locate(self):
            return tmp_path / self.name

    monkeypatch.setattr(
        packaged_weights.metadata,
        "distribution",
        lambda _: type("Package", (), {"files": [Piece()]}),
    )
    monkeypatch.setenv("MTST_CACHE", str(tmp_path / "cache" if where == "full" else NOWHERE))
    with (
        room_for(500 if where == "full" else 10**9),
        pytest.raises(OSError, match=r"could not be joined in .*MTST_CACHE"),
    ):
        mtst.load_backbone("all-mpnet-base-v2")
    assert where != "full" or list((tmp_path / "cache").iterdir()) == []
