"""The core as a whole: its floors, its style, its types."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked import package_modules, run_forked

import mtst_utils as mtst
from mtst_utils import encoder, layers, multitask, pooling

ROOT = Path(__file__).parents[1]
CORE = ROOT / "mtst_utils"
# From the top floor down: a file imports only from floors below its own, or its own.
FLOORS = [
    ["__init__"],
    ["training"],
    ["evaluation", "acceleration"],
    ["checkpoints", "processes", "frozen_prefix"],
    ["callbacks"],
    ["freezing"],
    ["learning_rates"],
    ["multitask"],
    ["frames"],
    ["encoder"],
    ["folders"],
    ["pooling", "precision", "threads", "layers"],
    ["backbones"],
    ["packaged_weights", "fast_cpu"],
    ["checks"],
]
FLOOR = {name: depth for depth, names in enumerate(FLOORS) for name in names}
FILES = sorted(CORE.glob("*.py"))


def imports_of(path):
    """The modules of this package that a file imports, at its top or anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mtst_utils"):
            inner = node.module.removeprefix("mtst_utils").removeprefix(".")
            yield from [inner] if inner else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("mtst_utils.")]
            yield from (name.removeprefix("mtst_utils.") for name in names)


def test_every_file_has_its_floor():
    assert {path.stem for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_below(path):
    for name in imports_of(path):
        if path.stem == "__init__" and name.startswith("experiments"):
            continue  # the corpora of the contract, imported when they are asked for
        assert name in FLOOR, f"{path.stem} imports {name}: the core imports nothing of the course"
        assert FLOOR[name] > FLOOR[path.stem], f"{path.stem} imports {name}, which stands above it"


def test_the_core_alone_does_not_load_the_course():
    [loaded] = run_forked(package_modules)  # in a process that has only imported the core
    assert "mtst_utils.training" in loaded
    assert [name for name in loaded if "experiments" in name] == []


def test_names_of_the_contract():
    names = """load_backbone layer_stack masked_mean SentenceEncoder cosine_matrix Task
    MultiTaskModel freeze unfreeze unfreeze_top_blocks GradualUnfreezing parameter_report
    layerwise_lr_groups lr_table
    warmup_linear load_sample_sentences load_triplets load_rated_sentences load_csv fit evaluate
    seed_everything BackboneNotAvailable MultiTaskOutput History CorpusNotAvailable Callback
    EarlyStopping MultiLabelTask RegressionTask load_human_ratings""".split()
    assert all(getattr(mtst, name).__doc__ for name in names)
    assert set(names) <= set(dir(mtst))
    with pytest.raises(AttributeError, match="has no attribute 'load_nothing'"):
        mtst.load_nothing  # noqa: B018


def public_functions(tree):
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", inner) for name, inner in public_functions(node))
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_public_functions_say_what_they_give(path):
    for name, node in public_functions(ast.parse(path.read_text())):
        assert node.returns is not None, f"{path.stem}.{name} has no return type"


def test_the_examples_of_the_packages_readme_run(monkeypatch, capsys):
    monkeypatch.setattr(pooling, "POOLINGS", dict(pooling.POOLINGS))
    monkeypatch.setattr(encoder, "POOLINGS", pooling.POOLINGS)
    monkeypatch.setattr(layers, "LAYOUTS", dict(layers.LAYOUTS))
    monkeypatch.setattr(multitask, "KINDS", dict(multitask.KINDS))
    examples = re.findall(r"```python\n(.*?)```", (CORE / "README.md").read_text(), re.DOTALL)
    assert len(examples) == 7
    names: dict[str, object] = {}  # a reader has nothing but what is printed
    few = mtst.load_sample_sentences().groupby("topic").head(2)
    monkeypatch.setattr(mtst.experiments.corpora, "load_sample_sentences", lambda: few)
    for example in examples:
        exec(compile(example, "an example in mtst_utils/README.md", "exec"), names)
    assert "block 1" in capsys.readouterr().out
    assert names["encoder"].encode("one").shape == (384,)


def test_the_example_of_the_front_page_runs(monkeypatch, tmp_path, capsys):
    """As it stands, but for how long: its checkpoint and its model go to a folder of the test's."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "sample_sentences.csv", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example.replace("epochs=3", "epochs=1"), "README.md", "exec"), names)
    assert "The keyboard feels cheap" in capsys.readouterr().out
    assert (tmp_path / "my-model").is_dir()


def test_mypy():
    cache = ROOT / ".pytest_cache" / "mypy"  # what has not changed is not checked again
    command = [sys.executable, "-m", "mypy", "--follow-imports", "skip", "--cache-dir", str(cache)]
    done = subprocess.run([*command, *map(str, FILES)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda words: words[0])
def test_ruff(command):
    places = [str(CORE), str(ROOT / "tests"), str(ROOT / "notebooks" / "slides.py")]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *places], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
