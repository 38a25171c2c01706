"""Shared and odd machines: a quota, few processors, other jobs, JupyterLab, a folder that cannot be
written to.
"""

import contextlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import environment
import joblib
import nbformat
import pytest
import torch

import mtst_utils as mtst
from mtst_utils import threads

ROOT = Path(__file__).parents[1]


@pytest.fixture
def own_threads():
    """torch's number of threads is as it was, after the test."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.parametrize(
    ("granted", "before", "usable"), [(1, 4, 1), (3, 4, 3), (4, 4, 4), (8, 4, 4), (2, 1, 1)]
)
def test_threads_are_lowered_never_raised(
    own_threads, monkeypatch, caplog, granted, before, usable
):
    monkeypatch.setattr(joblib, "cpu_count", lambda: granted)
    threads._log_once.cache_clear()
    torch.set_num_threads(before)
    for _ in range(2):
        with contextlib.suppress(InterruptedError), threads.within_quota():
            assert torch.get_num_threads() == usable
            raise InterruptedError
        assert torch.get_num_threads() == before
    said = [f"torch has {before} threads, and this process may use {usable}: it uses {usable}"]
    assert caplog.messages == (said if usable < before else [])  # once


def test_fit_and_encode_keep_within_the_quota(own_threads, monkeypatch, tiny_encoder):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    frame, seen = mtst.load_sample_sentences()[::8], []
    model = mtst.MultiTaskModel(tiny_encoder, [mtst.Task("topic", sorted(set(frame.topic)))])
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    tiny_encoder.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    mtst.fit(model, frame, frame, epochs=1, progress=False)
    tiny_encoder.encode(frame.text)
    model.predict(frame.text)
    assert torch.get_num_threads() == 2
    assert len(seen) >= 5
    assert set(seen) == {1}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
def test_one_processor_of_several(own_threads):
    torch.set_num_threads(2)

    def on_one_processor():
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # this thread's alone
        return threads.usable_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(on_one_processor).result() == 1
    assert torch.get_num_threads() == 2


def test_the_tests_take_no_more_threads_than_the_quota(own_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    environment.pytest_configure()
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (1, "1")


# What JupyterLab and its kernel give a process that is started from a cell.
LAB = {
    "JPY_SESSION_NAME": "/notebooks/04_layer_wise_learning_rates.ipynb",
    "JPY_PARENT_PID": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "FORCE_COLOR": "1",
    "CLICOLOR": "1",
    "CLICOLOR_FORCE": "1",
    "TERM": "xterm-color",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
}
# A notice on stderr is not compared, and the kernel is not told that it shows a page with controls.
CELL = """import os, sys
print("a notice", file=sys.stderr)
print(os.environ["OMP_WAIT_POLICY"], "JPY_SESSION_NAME" in os.environ)"""


def test_any_notebook_alone_from_jupyterlab(tmp_path):
    """By the settings of pyproject.toml alone: a notebook has no conftest.py of ours."""
    printed = nbformat.v4.new_output("stream", text="passive False\n")
    cell = nbformat.v4.new_code_cell(CELL, outputs=[printed], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "alone.ipynb")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml"]
    command += ["-n", "0", "-p", "no:cacheprovider", tmp_path / "alone.ipynb"]
    told = LAB | {"OMP_DISPLAY_ENV": "true", "OMP_WAIT_POLICY": "active"}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | told, capture_output=True, text=True
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    if sys.platform.startswith("linux"):  # what torch's threads go by, in its library's own words
        assert re.search(r"OMP_WAIT_POLICY\s*=\s*'?PASSIVE", done.stderr), done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not even root writes to /proc")
def test_a_folder_that_cannot_be_written_to(monkeypatch, tiny_encoder):
    monkeypatch.chdir("/proc")
    frame = mtst.load_sample_sentences()[::8]
    model = mtst.MultiTaskModel(tiny_encoder, [mtst.Task("topic", sorted(set(frame.topic)))])
    options = {"epochs": 1, "progress": False}
    assert len(mtst.fit(model, frame, frame, **options)) == 1  # nothing must be written
    assert len(model.predict(frame.text)) == len(frame)
    with pytest.raises(ValueError, match=r"checkpoint must be a folder that can be written to"):
        mtst.fit(model, frame, checkpoint="run", **options)
    with pytest.raises(OSError, match="mine"):
        model.save_pretrained("mine")
    message = "The corpus could not be written: .*/proc/mine.*or name a folder that can be written"
    with pytest.raises(mtst.CorpusNotAvailable, match=message):
        mtst.load_rated_sentences("/proc/mine")
