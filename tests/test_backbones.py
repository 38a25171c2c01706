"""load_backbone without a hub: packages, folders, the join; tests/test_hub.py has the hub."""

import os
import shutil
import zipfile

import pytest
import torch
from conftest import tiny_backbone, tiny_tokenizer
from forked import run_forked
from safetensors.torch import load_file, save_file

import mtst_utils as mtst
from mtst_utils import BackboneNotAvailable, load_backbone, packaged_weights


@pytest.fixture
def folder(tmp_path):
    tiny_backbone("mpnet").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def fresh():
    """Forget which packaged weights this process has checked, before and after."""
    packaged_weights.packaged_folder.cache_clear()
    yield
    packaged_weights.packaged_folder.cache_clear()


def test_default_comes_from_the_package(monkeypatch):
    monkeypatch.delenv("MTST_BACKBONE", raising=False)
    model, tokenizer = load_backbone()
    assert model.source == "package all-MiniLM-L6-v2"
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    assert model.pooler is None
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer("cat")["input_ids"] == [101, 4937, 102]
    assert load_backbone("sentence-transformers/all-MiniLM-L6-v2")[0].source == model.source


def test_environment_names_the_backbone(monkeypatch, folder):
    monkeypatch.setenv("MTST_BACKBONE", str(folder))
    assert load_backbone()[0].config.model_type == "mpnet"
    assert load_backbone("all-MiniLM-L6-v2")[0].config.model_type == "bert"  # a name given wins


def test_local_folder(folder):
    model, tokenizer = load_backbone(folder)
    assert model.source == "folder tiny"
    assert model.pooler is None
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert tokenizer("the cat")["input_ids"][0] == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors in"),
        (lambda f: (f / "config.json").unlink(), "cannot be loaded"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-100]
            ),
            "cannot be loaded",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ],
)
def test_damaged_folder(folder, damage, message):
    damage(folder)
    with pytest.raises(BackboneNotAvailable, match=message):
        load_backbone(folder)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_ones(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BackboneNotAvailable,
        match=r"lacks 1 of the model's tensors, first 'encoder\.layer\.1\.output",
    ):
        load_backbone(folder)


@pytest.mark.parametrize("name", ["./no/such", "/no/such/folder", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name):
    with pytest.raises(BackboneNotAvailable, match="no such folder.*Ways to get one"):
        load_backbone(name)


def test_bad_arguments(folder):
    with pytest.raises(TypeError, match="name must be a string or a path, not int"):
        load_backbone(5)
    with pytest.raises(BackboneNotAvailable, match="revision='main' names a commit on the hub"):
        load_backbone(folder, revision="main")
    assert issubclass(BackboneNotAvailable, ValueError)


def test_altered_package_is_refused(fresh, monkeypatch):
    monkeypatch.setitem(packaged_weights.SHA256, "all-MiniLM-L6-v2", "0" * 64)
    with pytest.raises(
        BackboneNotAvailable, match=r"is not the published file \(SHA-256 differs\)"
    ):
        load_backbone("all-MiniLM-L6-v2")


def join_pieces(pieces, cache):
    os.environ.update(TEST_PIECES=pieces, MTST_CACHE=cache)
    packaged_weights.metadata.distribution = Package
    return packaged_weights._joined_mpnet()


class Package:
    """Stands for an installed package that holds one piece of a zip."""

    folder = None

    def __init__(self, name):
        import os
        from pathlib import Path

        self.part = int(name[-3:])
        self.root = Path(os.environ["TEST_PIECES"])

    @property
    def files(self):
        piece = self.root / f"x.zip.{self.part:03}"

        class File:
            name = piece.name
            locate = staticmethod(lambda: piece)

        return [File] if piece.is_file() else []


@pytest.fixture
def pieces(tmp_path, folder, monkeypatch):
    """A tiny model folder, zipped and cut in five, as the packages hold the real one."""
    archive = tmp_path / "whole.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in folder.iterdir():
            zipped.write(file, f"all-mpnet-base-v2/{file.name}")
    data, place = archive.read_bytes(), tmp_path / "pieces"
    place.mkdir()
    size = len(data) // 5 + 1
    for i in range(5):
        (place / f"x.zip.{i + 1:03}").write_bytes(data[i * size : (i + 1) * size])
    monkeypatch.setenv("TEST_PIECES", str(place))
    monkeypatch.setenv("MTST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged_weights.metadata, "distribution", Package)
    return place


def test_join(pieces, folder, tmp_path, fresh, monkeypatch):
    monkeypatch.setitem(
        packaged_weights.SHA256,
        "all-mpnet-base-v2",
        packaged_weights.sha256(folder / "model.safetensors"),
    )
    model, _ = load_backbone("all-mpnet-base-v2")
    assert model.source == "package all-mpnet-base-v2"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [
        "all-mpnet-base-v2"
    ]  # nothing temporary is left
    shutil.rmtree(pieces)  # joined once: the pieces are not needed again
    assert load_backbone("sentence-transformers/all-mpnet-base-v2")[0].source == model.source


def test_interrupted_join_is_not_taken_for_a_whole_one(pieces, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(self, *_):
        (tmp_path / "cache").mkdir(exist_ok=True)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", die)
        with pytest.raises(Killed):
            packaged_weights._joined_mpnet()
    assert not (tmp_path / "cache" / "all-mpnet-base-v2").exists()
    (tmp_path / "cache" / "tmp-left-by-a-kill").mkdir()
    joined = packaged_weights._joined_mpnet()
    assert (joined / "model.safetensors").is_file()


def test_two_processes_join_at_once(pieces, tmp_path):
    answers = run_forked(join_pieces, str(pieces), str(tmp_path / "cache"), processes=2)
    assert answers == [tmp_path / "cache" / "all-mpnet-base-v2"] * 2
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["all-mpnet-base-v2"]


def test_random_weights_have_the_same_architecture(encoder):
    # Notebook 01's baseline.
    random = type(encoder.backbone)(encoder.backbone.config)
    names = {n for n, _ in random.named_parameters() if not n.startswith("pooler")}
    assert names == {n for n, _ in encoder.backbone.named_parameters()}
    assert mtst.layer_stack(encoder.backbone)[1].name == "block 0"
