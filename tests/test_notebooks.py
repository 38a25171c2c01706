"""The notebooks as they are committed: run whole, compared, and fit to be read where they are
hosted.
"""

import ast
import copy
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbconvert import HTMLExporter, SlidesExporter

import mtst_utils as mtst
from mtst_utils import pooling
from mtst_utils.experiments import layer_rates, probes, sentence_transformer, studies, transfer
from mtst_utils.experiments.notebook import UNFIT

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
read = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def slides():
    """notebooks/slides.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("slides", ROOT / "notebooks" / "slides.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@read
def test_run_top_to_bottom_in_one_go(path):
    # nbval runs a cell whose execution count is null, and compares nothing: a suite of such cells
    # is green and empty.
    counts = {i: cell.execution_count for i, cell in enumerate(code_cells(path))}
    assert all(counts.values())
    # A reader is told to run a cell with controls again, alone, to have them back.
    played = {i for i, cell in enumerate(code_cells(path)) if "control(" in cell.source}
    assert len({count - i for i, count in counts.items() if i not in played}) == 1


@read
def test_outputs_are_compared(path):
    """A cell may be left out of the comparison only for what differs from run to run, and then few
    are.
    """
    cells = code_cells(path)
    tags = [set(cell.metadata.get("tags", [])) for cell in cells]
    assert set().union(*tags) <= {"nbval-ignore-output", "no-code-on-slide"}
    assert sum("nbval-ignore-output" in names for names in tags) <= 0.3 * len(cells)
    assert not any("NBVAL" in cell.source for cell in cells)  # nbval also obeys comments
    checks = [
        cell for cell in cells if any("Check passed" in o.get("text", "") for o in cell.outputs)
    ]
    assert len(checks) >= 5
    assert not any("nbval-ignore-output" in cell.metadata.get("tags", []) for cell in checks)
    for cell in checks:  # a check that prints must assert
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


CLOCKS = {"perf_counter", "perf_counter_ns", "process_time", "monotonic", "timeit", "default_timer"}


def names_in(node):
    """Its variables and the clocks that it reads."""
    parts = list(ast.walk(node))
    clocks = {part.attr for part in parts if isinstance(part, ast.Attribute)} & CLOCKS
    return clocks | {part.id for part in parts if isinstance(part, ast.Name)}


def changed(node):
    """The variables that an assignment to this, or a call of a method (`a[b].append(c)`), changes:
    not those that only say where.
    """
    if isinstance(node, ast.Tuple):
        return set().union(*map(changed, node.elts))
    if isinstance(node, ast.Call):
        node = node.func.value if isinstance(node.func, ast.Attribute) else None
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def asserted_times(source):
    """The assertions on what a clock said, from statement to statement: through assignments, calls
    on a variable (`seconds.append`) and functions.
    """
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    timed = set(CLOCKS)
    for node in sorted(statements, key=lambda node: node.lineno):
        if isinstance(node, ast.Assert) and timed & names_in(node.test):
            yield ast.unparse(node)
        elif isinstance(node, ast.FunctionDef) and timed & names_in(node):
            timed.add(node.name)
        elif isinstance(node, ast.Assign):
            if timed & names_in(node.value):
                timed = timed.union(*map(changed, node.targets))
            else:
                timed -= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Expr | ast.AugAssign) and timed & names_in(node.value):
            timed |= changed(node.value if isinstance(node, ast.Expr) else node.target)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("start = perf_counter(); run(); took = perf_counter() - start; assert took < 1", 1),
        ("for _ in range(3):\n    s.append(time.perf_counter() - t)\nassert min(s) < 1", 1),
        ("def cost(): return time.monotonic()\nrow = {'s': cost()}\nassert row['s'] < 1", 1),
        ("s = timeit(run); s = 3; assert s == 3", 0),
        ("s = timeit(run); print(s); assert x == 3", 0),
    ],
)
def test_assertions_on_a_clock_are_found(source, found):
    assert len(list(asserted_times(source))) == found


@read
def test_no_assertion_on_a_clock(path):
    """On a busy machine it would fail, or be so wide that it says nothing."""
    assert not list(asserted_times("\n".join(cell.source for cell in code_cells(path))))


# What a machine says once, and leaves in a notebook that was run and saved on it.
NOTICE = re.compile("torch has [0-9]+ threads, and this process may use [0-9]+: it uses [0-9]+\n")


@read
def test_no_errors_no_stderr_no_machine(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr" or NOTICE.fullmatch(output.text)
    text = path.read_text()
    assert not re.findall(r"(?<![\w.:/])/(?:home|root|work|opt|tmp)/\w+", text)
    assert not re.findall(r"PROSE|RECAP|TODO|FIXME", text)


@read
def test_can_be_rendered_where_it_is_hosted(path):
    # As it is committed. JupyterLab gives every line of code and text a line of its own, and more
    # bytes; who has saved there may still test.
    committed = json.dumps(nbformat.read(path, 4), indent=1, ensure_ascii=False)
    assert len(committed.encode()) < 500_000
    for cell in code_cells(path):
        # JupyterLab stores a view of the controls, which no other page can show: it adds no text,
        # and what stays is beside it.
        views = [
            output
            for output in cell.outputs
            if any("widget" in kind for kind in output.get("data", {}))
        ]
        assert all(
            list(view.data) == ["application/vnd.jupyter.widget-view+json"] for view in views
        )
        assert len(views) < len(cell.outputs) or not views
        assert not any("<function" in str(output.get("data", "")) for output in cell.outputs)


@read
def test_fit_for_a_class(path):
    """No swear word, slur or the like in a table, a figure's text, or anything that was written;
    nor a list of them.
    """
    cells = nbformat.read(path, 4).cells
    written = [text for cell in cells for text in (cell.source, cell.metadata.get("alt", ""))]
    shown = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    for data in (output.get("data", {}) for cell in cells for output in cell.get("outputs", [])):
        written.append(data.get("text/markdown", ""))
        shown += [data.get("text/plain", ""), data.get("text/html", "")]
    # Python's and Markdown's asterisks hide no letters.
    found = [
        word
        for text in [*shown, *(text.replace("*", " ") for text in written)]
        for word in UNFIT.findall(text)
    ]
    assert not found


@read
def test_rhythm(path):
    cells = nbformat.read(path, 4).cells
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in cells)
    assert "ccc" not in kinds
    lengths = sorted(
        len([line for line in cell.source.splitlines() if line.strip()])
        for cell in code_cells(path)
    )
    assert lengths[-1] <= 25
    assert lengths[len(lengths) // 2] <= 8
    source = "\n".join(cell.source for cell in cells)
    for part in (
        "**The question.**",
        "## Recap",
        "## Asked in interviews",
        "## Exercises",
        "## References",
        "<b>Predict</b>",
    ):
        assert part in source
    assert len(re.findall(r"<details", source)) == len(re.findall(r"</details>", source)) >= 8


@read
def test_dollars_in_a_table_are_no_formula(path):
    """MathJax would set what stands between two prices in a sentence of the corpus."""
    source = "\n".join(cell.source for cell in code_cells(path))
    if "presentable(" in source:
        assert '"display.html.use_mathjax", False' in source


@read
def test_every_figure_can_be_read_aloud(path):
    for cell in code_cells(path):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert re.match(r"Figure: [A-Z]\w*\b.{15,}", cell.metadata.get("alt", "")), cell.source[
                :80
            ]


@read
def test_slides_make_a_talk(path, slides):
    cells = nbformat.read(path, 4).cells
    kinds = [cell.metadata.slideshow.slide_type for cell in cells]
    assert kinds[0] == "slide"
    assert 12 <= kinds.count("slide") <= 20
    assert kinds.count("notes") >= kinds.count("slide") / 2
    page, _ = SlidesExporter(config=slides.config(local=False)).from_filename(str(path))
    code = re.findall(r'<div class="highlight.*?</pre>', page, re.DOTALL)
    assert len(code) <= 4  # only where code is the point
    figures = re.findall(r"<img[^>]*>", page)
    assert figures
    assert all(re.search(r'alt="Figure: .{15}', figure) for figure in figures)
    assert all(float(re.search(r'height="(\d+)', figure)[1]) <= 560 for figure in figures)


@read
def test_a_page_has_alternative_texts_and_formulas_without_a_network(path, slides):
    page, _ = HTMLExporter(config=slides.config(local=True, page=True)).from_filename(str(path))
    figures = re.findall(r"<img[^>]*>", page)
    assert figures
    assert all(re.search(r'alt="Figure: .{15}', figure) for figure in figures)
    assert all(int(re.search(r'width="(\d+)', figure)[1]) <= 900 for figure in figures)
    # On a phone no figure is shrunk until its letters cannot be read: it is moved sideways instead.
    least = [int(re.search(r"max\(100%, (\d+)px", figure)[1]) for figure in figures]
    assert max(least) > 390
    assert all(pixels > 250 for pixels in least)
    assert page.count("overflow-x: auto") >= len(figures)
    assert "node_modules/mathjax" in page
    assert not re.search(r'src="https?://', page)


def test_slides_of_a_notebook_saved_in_jupyterlab(tmp_path, slides):
    """Controls, which are no page's to show, do not get in the way; what stands below them does."""
    view = nbformat.v4.new_output(
        "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    )
    below = nbformat.v4.new_output("stream", text="the stored example")
    cell = nbformat.v4.new_code_cell("draw()", outputs=[view, below], execution_count=1)
    cell.metadata["slideshow"] = {"slide_type": "slide"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "saved.ipynb")
    page, _ = SlidesExporter(config=slides.config(False)).from_filename(tmp_path / "saved.ipynb")
    assert "the stored example" in page


def global_names(node):
    """Names that a function or lambda reads and does not set itself."""
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    own = {part.id for part in names if not isinstance(part.ctx, ast.Load)}
    own |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
    return {part.id for part in names} - own


def set_by(source):
    """Names that a cell sets, functions' own aside."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
    found, left = set(), list(ast.parse(source).body)
    while left:
        node = left.pop()
        if isinstance(node, kinds):
            found |= {node.name} if hasattr(node, "name") else set()
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        left += ast.iter_child_nodes(node)
    return found


@read
def test_controls_work_after_run_all(path):
    """No later cell gives another meaning to a name that a control's function reads."""
    sources = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    for i, source in enumerate(sources):
        if "control(" not in source:
            continue
        parts = [
            n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.Lambda))
        ]
        read = set().union(*map(global_names, parts))
        for later in sources[i + 1 :]:
            assert not read & set_by(later), later[:200]


def test_slides_need_no_network_where_npm_is(tmp_path, slides, monkeypatch, capsys):
    path = NOTEBOOKS[0]
    monkeypatch.setattr(slides.shutil, "which", lambda name: None)
    page = slides.written(path, tmp_path).read_text()
    assert page.count(slides.FITTING) == 1  # what is too tall is made to fit
    assert "needs a network" in capsys.readouterr().out
    assert re.search(r'src="https://[^"]*require', page)

    def npm(command, **_):  # leaves the files that it is asked for
        assert command[1] == "install"
        assert command[-4:] == list(slides.SCRIPTS)
        for _, place in slides.SCRIPTS.values():
            file = tmp_path / "node_modules" / place.partition("?")[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(slides.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(slides.subprocess, "run", npm)
    page = slides.written(path, tmp_path).read_text()
    assert "works without a network" in capsys.readouterr().out
    assert not re.search(r'<(?:script|link)[^>]*(?:src|href)="(?:https?:)?//', page)
    monkeypatch.setattr(slides.subprocess, "run", None)  # what is there is not fetched again
    slides.written(path, tmp_path)


@read
def test_links_lead_somewhere(path):
    source = "\n".join(
        cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"
    )
    for target in re.findall(r"\]\((?!http)([^)#]+)", source):
        assert (path.parent / target).exists(), target


def exercises(path):
    """What stands between "## Exercises" and the next heading: ("solution", code in a folded
    answer) and ("stub", a cell that a reader fills in), in order.
    """
    cells = nbformat.read(path, 4).cells
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Exercises"))
    steps = []
    for i, cell in enumerate(cells[start:]):
        if cell.cell_type == "code":
            steps.append(("stub", cell.source))
        elif i and cell.source.startswith("## "):
            break
        else:
            found = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
            steps += [("solution", code) for code in found]
    return steps


def without_stub(check, solution):
    """A stub's cell without what the solution defines: the tests that stand under it."""

    def names(node):
        if isinstance(node, ast.Assign):
            return {
                part.id
                for target in node.targets
                for part in ast.walk(target)
                if isinstance(part, ast.Name)
            }
        return {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()

    solved = set().union(*map(names, ast.parse(solution).body))
    tree = ast.parse(check)
    before = len(tree.body)
    tree.body = [node for node in tree.body if not names(node) & solved]
    assert len(tree.body) < before, "the solution is of another stub"
    return tree


# What a reader may write, and what passed once.
WRONG = [
    ("max_pool", "def max_pool(tokens, mask):\n    return tokens.amax(1)"),
    (
        "max_pool",
        """def max_pool(tokens, mask):
    return tokens.masked_fill(mask[..., None] == 0, -1).amax(1)""",
    ),
    (
        "rising_mean",
        """def rising_mean(tokens, mask):
    weights = (mask * torch.arange(1, mask.shape[1] + 1))[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)""",
    ),
    ("batches", "def batches(lengths, budget):\n    return [[i] for i in range(len(lengths))]"),
    ("choose_k", "def choose_k(x, y, options):\n    return options[0]"),
    ("choose_k", "def choose_k(x, y, options):\n    return options[1]"),
    ("choose_k", "def choose_k(x, y, options):\n    return max(options)"),
    ("growth", "def growth(classes, dimension, encoder_parameters):\n    return 2695 / 22_565_376"),
    (
        "equal_pulls",
        """def equal_pulls(a, b):
    one, two = a.norm().item(), b.norm().item()
    return 2 * two / (two - one), 2 * one / (one - two)""",
    ),
    (
        "guarded",
        """def guarded(logits, truth):
    if (truth == -100).all():
        return 0
    return torch.nn.functional.cross_entropy(logits, truth, ignore_index=-100)""",
    ),
    (
        "is_upside_down",
        """def is_upside_down(groups):
    rates = mtst.lr_table(groups).lr[:-1]
    return bool((rates.diff() < 0).any())""",
    ),
    (
        "straight_line",
        """def straight_line(groups, lowest):
    names = list(dict.fromkeys(group["layer"] for group in groups))
    share = dict(zip(names, [*np.linspace(lowest, 1, len(names) - 1), 1]))
    return [group | {"lr": 1e-4 * share[group["layer"]]} for group in groups]""",
    ),
    (
        "between",
        """def between(old, new, share):
    model = copy.deepcopy(old)
    with torch.no_grad():
        for p, q in zip(model.encoder.parameters(), new.encoder.parameters(), strict=True):
            p.lerp_(q, share)
        model.heads["sentiment"].weight.copy_(new.heads["sentiment"].weight)
    return model""",
    ),
    (
        "BottomUp",
        """class BottomUp(mtst.GradualUnfreezing):
    def schedule(self, model, total_steps):
        table = super().schedule(model, total_steps)
        return table.assign(layer=table.layer.to_numpy()[::-1])""",
    ),
    (
        "surgery",
        """def surgery(a, b):
    if a @ b >= 0:
        return a
    left = a - (a @ b) / (b @ b) * b
    return left * a.norm() / left.norm()""",
    ),
    (
        "only_biases",
        """def only_biases(model):
    mtst.freeze(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))
    return model""",
    ),
    (
        "keep_answers",
        """def keep_answers(new, old, T=2.0):
    new, old = (nn.functional.log_softmax(logits / 2, -1) for logits in (new, old))
    return 4 * (old.exp() * (old - new)).sum(-1).mean()""",
    ),
    (
        "between",
        """def between(old, new, share):
    model = copy.deepcopy(old)
    for mine, one, other in zip(*(m.parameters() for m in (model, old, new)), strict=True):
        mine.data.copy_(one + share * (other - one))
    return model""",
    ),
    (
        "BottomUp",
        """class BottomUp(mtst.GradualUnfreezing):
    def schedule(self, model, total_steps):
        return super().schedule(model, total_steps).iloc[::-1]""",
    ),
    (
        "is_upside_down",
        """def is_upside_down(groups):
    return bool((mtst.lr_table(groups).lr.diff() < 0).any())""",
    ),
    (
        "is_upside_down",
        """def is_upside_down(groups):
    rates = mtst.lr_table(groups).set_index("name").lr.filter(like="block")
    return bool(rates.iloc[-1] < rates.iloc[0])""",
    ),
    (
        "straight_line",
        """def straight_line(groups, lowest):
    body = [group for group in groups if group["layer"] != "heads"]
    shares = np.linspace(lowest, 1, len(body))
    body = [g | {"lr": g["lr"] * share} for g, share in zip(body, shares, strict=True)]
    return body + [group for group in groups if group["layer"] == "heads"]""",
    ),
]


@pytest.mark.filterwarnings("ignore:.*were cut there")
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@read
def test_solutions_of_exercises_run(path, encoder, corpus, capsys):
    """The folded solutions, as they stand there, on a few sentences, with the names that the
    notebook's cells have made.
    """
    steps = exercises(path)
    assert sum(kind == "solution" for kind, _ in steps) >= 2
    few = {
        name: corpus[corpus.split == name].sample(16, random_state=0)
        for name in ("train", "valid", "test")
    }
    model = transfer.new_model()
    names = {
        "mtst": mtst,
        "np": np,
        "pd": pd,
        "torch": torch,
        "copy": copy,
        "studies": studies,
        "probes": probes,
        "sentence_transformer": sentence_transformer,
        "transfer": transfer,
        "layer_rates": layer_rates,
        "triplets": mtst.load_triplets()[:5],
        "corpus": corpus[:200],
        "split": few,
        "encoder": encoder,
        "backbone": encoder.backbone,
        "tokenizer": encoder.tokenizer,
        "train": few["train"],
        "sentences": few["train"],
        "tasks": list(model.tasks.values()),
        "model": model,
        "reference": model,
        "start": transfer.new_model(seed=1),
        "after": {"head A frozen": model},
        "look": few["valid"],
        "nn": torch.nn,
    }
    check, said = None, ""
    for kind, source in steps:
        if kind == "stub":
            exec(compile(source, f"a stub in {path.name}", "exec"), names)
            assert "not tried yet" in capsys.readouterr().out
            check = source
            continue
        # A sample as large as the notebook's would take minutes.
        source = re.sub(r"\.sample\(\d+", ".sample(16", source)
        exec(compile(source, f"a solution in {path.name}", "exec"), names)
        if check is not None:
            exec(compile(without_stub(check, source), f"a check in {path.name}", "exec"), names)
            said += capsys.readouterr().out
            assert "solved" in said.splitlines()[-1]
            for name, wrong in WRONG:
                if re.search(rf"^(def|class) {name}\b", source, re.M):
                    exec(wrong, names)
                    with pytest.raises(AssertionError, match="not yet"):
                        exec(compile(without_stub(check, source), name, "exec"), names)
                    exec(source, names)
            capsys.readouterr()
            check = None
        said += capsys.readouterr().out
    assert said
    assert check is None, "a stub without a solution"


@pytest.fixture(autouse=True)
def as_before():
    """A solution may add a pooling or a study: not for the tests after it."""
    tables = [pooling.POOLINGS, studies.STUDIES["layerwise_many"]]
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)
