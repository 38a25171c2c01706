"""The hub path for real: load_backbone in processes of its own, against a small hub on this
machine.
"""

import hashlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import MPNetConfig, MPNetModel, MPNetTokenizerFast

from mtst_utils import BackboneNotAvailable, load_backbone

PARAPHRASE = "sentence-transformers/paraphrase-mpnet-base-v2"
UNKNOWN = "0123456789abcdef0123456789abcdef01234567"  # a commit of no repository here
TOKEN = "hf_of_a_test"
TIMEOUT = 2  # seconds that the loading processes grant the hub for an answer
AT_ONCE = 2  # seconds; a refusal takes milliseconds, the hub client's own retries would take 23 s


def digest(tensors):
    return hashlib.sha256(
        b"".join(k.encode() + v.numpy().tobytes() for k, v in sorted(tensors.items()))
    ).hexdigest()


def answer_requests():
    """What a loading process does: one load for each line it reads."""
    constants.DOWNLOAD_CHUNK_SIZE = (
        1024  # with the real 10 MB, nothing of a tiny file would ever be half-written
    )
    for line in sys.stdin:
        name, options = json.loads(line)
        start, answer = time.perf_counter(), {"error": "", "weights": None, "source": None}
        try:
            model, tokenizer = load_backbone(name, **options)
            answer |= {
                "source": model.source,
                "weights": digest(model.state_dict()),
                "pooler": bool(model.pooler),
            }
            answer["ids"] = tokenizer("the red foxes")["input_ids"]
        except BackboneNotAvailable as error:
            answer["error"] = str(error)
        print(json.dumps(answer | {"seconds": time.perf_counter() - start}), flush=True)


class Loader:
    """A process that loads backbones; many, to import torch once. The hub client reads its settings
    at import.
    """

    def __init__(self, home, port):
        env = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS"))
        }
        env |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "NO_PROXY": "127.0.0.1",
            "HF_HOME": str(home),
        }
        env |= {"HF_HUB_ETAG_TIMEOUT": str(TIMEOUT), "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT)}
        env |= {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "MTST_BACKBONE": "paraphrase-mpnet-base-v2",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, __file__], env=env, **pipes)

    def load(self, name, **options):
        """Either an error, or a model's source, weights and so on: no failed load may bring some
        other model.
        """
        print(json.dumps([name, options]), file=self.process.stdin, flush=True)
        assert select.select([self.process.stdout], [], [], 60)[0], "no answer in 60 s"
        return json.loads(self.process.stdout.readline())


class Hub:
    """What snapshot_download asks of a hub, served from folders."""

    def __init__(self):
        self.repos = {}  # hub id -> {branch or commit: folder}
        self.cut = None  # the hub id whose weights always break off half-way
        self.sent = []  # (hub id, file, first byte) of each answer
        self.private, self.tokens = "", []  # the hub id that wants TOKEN; what each request had
        self.start(port=0)

    def start(self, port):
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.hub, self.port = self, self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def away(self, silent=False):
        """The port is closed; or connections open, and nobody reads."""
        self.stop()
        try:
            with socket.create_server(("127.0.0.1", self.port)) if silent else nullcontext():
                yield
        finally:
            self.start(self.port)

    def publish(self, hub_id, *folders):
        self.repos[hub_id] = {commit(folder): folder for folder in folders} | {"main": folders[-1]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = r"(?:/api/models)?/([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?"
        hub_id, verb, revision, file = re.fullmatch(path, self.path.partition("?")[0]).groups()
        hub, (status, body, headers) = self.server.hub, (200, b"", {})
        folder = hub.repos.get(hub_id, {}).get(revision or "main")
        hub.tokens.append(self.headers.get("Authorization"))
        if hub_id == hub.private and hub.tokens[-1] != f"Bearer {TOKEN}":
            status = 401
        elif not folder:
            status, headers["X-Error-Code"] = (
                404,
                "RevisionNotFound" if hub_id in hub.repos else "RepoNotFound",
            )
        elif verb == "tree":
            files = [item for item in folder.rglob("*") if item.is_file()]
            sizes = {str(item.relative_to(folder)): item.stat().st_size for item in files}
            body = json.dumps(
                [{"type": "file", "path": k, "size": v, "oid": k} for k, v in sizes.items()]
            ).encode()
        elif verb == "resolve":
            body = (folder / file).read_bytes()
            headers = {
                "X-Repo-Commit": commit(folder),
                "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
            }
        else:
            body = json.dumps({"id": hub_id, "sha": commit(folder)}).encode()
        first, end = int(self.headers.get("Range", "bytes=0-")[6:-1]), len(body)
        if first:
            status, headers["Content-Range"] = 206, f"bytes {first}-{end - 1}/{end}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        if self.command == "GET":
            hub.sent.append((hub_id, file, first))
            self.wfile.write(
                body[first : end // 2 if (hub_id, file) == (hub.cut, "model.safetensors") else end]
            )

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def commit(folder):
    return hashlib.sha1(str(folder).encode()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Up, with two random models to serve, and two processes that share one cache: `then` finds
    what `first` left.
    """
    hub, home = Hub(), tmp_path_factory.mktemp("home")
    hub.first, hub.then = (
        Loader(home, hub.port),
        Loader(home, hub.port),
    )  # they import torch meanwhile
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "the", "red", "fox", "##es"]
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    hub.old, hub.new = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("new")
    for seed, folder in enumerate((hub.old, hub.new)):
        torch.manual_seed(seed)
        MPNetModel(MPNetConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
        MPNetTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    yield hub
    hub.stop()
    for loader in (hub.first, hub.then):
        loader.process.kill()
        loader.process.communicate()


def weights(folder):
    tensors = load_file(folder / "model.safetensors")
    assert tensors.pop(
        "pooler.dense.weight"
    ).any()  # as on the real hub: it is there to be left out
    return digest({key: value for key, value in tensors.items() if key != "pooler.dense.bias"})


@pytest.mark.parametrize(
    "name", ["paraphrase-mpnet-base-v2", None]
)  # None: the processes have it as $MTST_BACKBONE
def test_the_short_name_loads_what_the_hub_serves(hub, name):
    hub.publish(PARAPHRASE, hub.old, hub.new)
    got = hub.first.load(name)
    assert not got["error"]
    assert not got["pooler"]
    assert got["weights"] == weights(hub.new)
    assert got["source"] == f"{PARAPHRASE}@{commit(hub.new)}"
    assert got["ids"] == [0, 5, 6, 7, 8, 2]


def test_a_revision_pins_the_weights(hub):
    hub.publish("tiny/pinned", hub.old, hub.new)
    for folder in (hub.old, hub.new):
        got = hub.first.load("tiny/pinned", revision=commit(folder))
        assert got["weights"] == weights(folder), got["error"]
        assert got["source"] == f"tiny/pinned@{commit(folder)}"
    assert weights(hub.old) != weights(hub.new)


def test_what_the_hub_does_not_know_is_named(hub):
    hub.publish("tiny/pinned", hub.new)
    assert "tiny/nowhere" in hub.first.load("tiny/nowhere")["error"]
    for revision in ("no-such-branch", UNKNOWN):
        assert revision in hub.first.load("tiny/pinned", revision=revision)["error"]


@pytest.mark.parametrize("revision", [None, UNKNOWN])
def test_a_hub_that_is_away_raises_in_time(hub, revision):
    with hub.away():
        got = hub.first.load("tiny/unseen", revision=revision)
    assert "refused" in got["error"]
    assert got["seconds"] < AT_ONCE
    with hub.away(silent=True):
        got = hub.first.load("tiny/unseen", revision=revision)
    assert "timed out" in got["error"]
    assert TIMEOUT - 0.1 < got["seconds"] < TIMEOUT + AT_ONCE


def test_half_a_download_is_never_a_model(hub):
    hub.publish("tiny/cut", hub.new)
    hub.cut = "tiny/cut"
    assert hub.first.load("tiny/cut")["error"]
    starts = [
        first
        for hub_id, file, first in hub.sent
        if (hub_id, file) == ("tiny/cut", "model.safetensors")
    ]
    assert max(starts) > 0  # some bytes had been written, and the client asked for the rest
    with hub.away():
        assert hub.first.load("tiny/cut")["error"]
        assert hub.then.load("tiny/cut")["error"]
    hub.cut = None
    assert hub.then.load("tiny/cut")["weights"] == weights(hub.new)
    assert hub.first.load("tiny/cut")["weights"] == weights(hub.new)


def test_what_is_cached_loads_without_the_hub(hub):
    hub.publish("tiny/cached", hub.old, hub.new)
    hub.first.load("tiny/cached")
    with hub.away():
        for revision in (None, commit(hub.new)):
            got = hub.then.load("tiny/cached", revision=revision)
            assert got["weights"] == weights(hub.new), got["error"]
            assert got["source"] == f"tiny/cached@{commit(hub.new)}"
        assert hub.then.load("tiny/cached", revision=commit(hub.old))[
            "error"
        ]  # no other commit stands in for it
    with hub.away(silent=True):
        assert hub.then.load("tiny/cached")["weights"] == weights(hub.new)


def test_a_private_repository_gets_the_token_with_every_request(hub):
    hub.publish("tiny/private", hub.new)
    hub.private = "tiny/private"
    assert "tiny/private" in hub.first.load("tiny/private")["error"]
    hub.tokens.clear()
    assert hub.first.load("tiny/private", token=TOKEN)["weights"] == weights(hub.new)
    assert len(hub.tokens) > 5
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}


def test_a_cache_of_ones_own_and_no_request_at_all(hub, tmp_path):
    hub.publish("tiny/own-cache", hub.new)
    options = {"cache_dir": str(tmp_path / "cache")}
    nothing = hub.first.load("tiny/own-cache", local_files_only=True, **options)
    assert "tiny/own-cache" in nothing["error"]
    assert hub.first.load("tiny/own-cache", **options)["weights"] == weights(hub.new)
    assert len(list((tmp_path / "cache").rglob("model.safetensors"))) == 1
    hub.tokens.clear()
    got = hub.then.load("tiny/own-cache", local_files_only=True, **options)
    assert got["weights"] == weights(hub.new)
    assert not hub.tokens
    assert hub.then.load("tiny/own-cache", local_files_only=True)["error"]  # not in the common one


def test_a_model_in_a_subfolder(hub, tmp_path):
    shutil.copytree(hub.new, tmp_path / "repository" / "inner")
    shutil.copytree(hub.old, tmp_path / "repository" / "other")
    dense = tmp_path / "repository" / "inner" / "2_Dense"  # what from_pretrained will want besides
    dense.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (dense / name).write_bytes(name.encode())  # of different content: else fetched once
    hub.publish("tiny/nested", tmp_path / "repository")
    got = hub.first.load("tiny/nested", subfolder="inner")
    assert got["weights"] == weights(hub.new)
    assert got["source"] == f"tiny/nested@{commit(tmp_path / 'repository')}"
    fetched = {file for hub_id, file, _ in hub.sent if hub_id == "tiny/nested"}
    assert "inner/model.safetensors" in fetched
    assert {f"inner/2_Dense/{name}" for name in ("config.json", "model.safetensors")} <= fetched
    assert "inner/2_Dense/pytorch_model.bin" not in fetched
    assert "other/model.safetensors" not in fetched
    assert "no model.safetensors" in hub.first.load("tiny/nested")["error"]


def test_only_safetensors_are_read(hub, tmp_path):
    folder = shutil.copytree(hub.new, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub.publish("tiny/pickled", folder)
    for name in ("tiny/pickled", str(folder)):
        assert "no model.safetensors" in hub.first.load(name)["error"]


FOREIGN = {
    "config.json": {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "foreign.A", "AutoModel": "foreign.A"},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "A",
        "auto_map": {"AutoTokenizer": [None, "foreign.A"]},
    },
}


@pytest.mark.parametrize("file", FOREIGN)
def test_remote_code_is_not_run(hub, tmp_path, file):
    folder = shutil.copytree(hub.new, tmp_path / "foreign")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | FOREIGN[file]))
    (folder / "foreign.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    hub.publish("tiny/foreign", folder)
    for name in ("tiny/foreign", str(folder)):  # in the folder, the code lies at hand
        # A foreign model is refused; for a foreign tokenizer, transformers takes MPNet's own class.
        assert bool(hub.first.load(name)["error"]) == (file == "config.json")
    assert not (tmp_path / "it-ran").exists()


if __name__ == "__main__":
    answer_requests()
