"""What a person can do to a notebook's controls, and which sentences of the corpus a class gets to
see.
"""

import codecs
import warnings
from types import SimpleNamespace

import IPython
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from IPython.core.formatters import DisplayFormatter

from mtst_utils.experiments import notebook


def test_a_slider_and_a_field_draw_anew():
    drawn = []
    start, options = {"sentence": "one", "base_lr": 1}, {"base_lr": [1, 0.95]}
    field, slider, hint, _ = notebook.controls(
        lambda **values: drawn.append(values), start, options
    ).children
    assert slider.options == (1, 0.95)
    assert slider.description == "base lr"
    assert "let go of a slider" in hint.value
    assert drawn == []  # the stored example shows the start
    slider.value = 0.95
    field.value = "another"
    assert drawn == [{"sentence": "one", "base_lr": 0.95}, {"sentence": "another", "base_lr": 0.95}]


def complain(sentence):
    warnings.warn(f"{sentence} was cut", stacklevel=1)
    raise ValueError(f"cannot draw {sentence}")


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("", "The field is empty: type a sentence.\n"),
        (" \n\t", "The field is empty: type a sentence.\n"),
        ("this", "ValueError: cannot draw this\nNote: this was cut\n"),
    ],
)
def test_whatever_is_typed_is_answered_in_plain_lines(typed, answer, capsys):
    notebook._show(complain, {"sentence": typed})
    assert capsys.readouterr() == (answer, "")


@pytest.mark.parametrize(
    "hidden", ["nff", "fuvgfgbez", "#shpxlbh", "FHPXVAT!", "evccrq bss, qnza vg", "ovgpurf"]
)
def test_what_is_not_fit_for_a_class(hidden):
    frame = pd.DataFrame({"text": [codecs.decode(hidden, "rot13"), "A lovely day."]})
    assert notebook.presentable(frame).text.tolist() == ["A lovely day."]


@pytest.mark.parametrize("text", ["f*** it", "what an a**hole", "sh*t happens", "F*&amp;N&amp;*"])
def test_letters_behind_asterisks(text):
    assert notebook.presentable(pd.DataFrame({"text": [text]})).empty


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("Brady is a liar #DeflateGate", False),
        ("@united your pilot was an idiot", False),
        ("Everyone knows that John Smith cheated.", False),
        ("a stupid plot, and a pathetic ending", True),
        ("@united three hours on hold", True),
        ("Stupid me. I forgot the charger.", True),
    ],
)
def test_nobody_who_is_named_is_abused(text, stays):
    assert len(notebook.presentable(pd.DataFrame({"text": [text]}))) == stays


def test_harmless_words_stay():
    text = (
        "The classic assembly passed on Saturday: a sturdy glass, a shaggy cocktail, "
        "analysis in Scunthorpe and Essex. "
        "Hello, peacock; a document on therapists, a shell, thoroughly ** bold **, 2*3, 4 "
        "stars ***, at $5."
    )
    assert not notebook.UNFIT.findall(
        text.replace("Scunthorpe", "")
    )  # that town is a price worth paying


def test_few_sentences_are_lost(corpus):
    some = corpus.sample(4000, random_state=0)
    left = notebook.presentable(some)
    assert 0.95 < len(left) / len(some) < 0.98
    assert left.columns.equals(corpus.columns)


def test_a_source_is_the_code_that_runs_and_can_be_folded():
    def shown():
        return 1

    source = notebook.show_source(shown).data
    assert source.startswith("```python\n")
    assert "return 1" in source
    folded = notebook.show_source(shown, folded="Click").data
    assert folded == f"<details><summary>Click</summary>\n\n{source}\n\n</details>"


def test_text_is_on_the_left_of_its_column():
    frame = pd.DataFrame({"claim": ["holds", "–"], "n": [3, 40]}, index=["A", "the other"])
    page = BeautifulSoup(notebook.aligned(frame._repr_html_()), "html.parser")
    left = {cell.text for cell in page(["th", "td"]) if cell.get("style") == "text-align: left"}
    assert left == {"", "claim", "holds", "–", "A", "the other"}
    several = frame.T.set_axis(pd.MultiIndex.from_product([["both"], ["x", "y"]]), axis=1)
    assert "text-align: left" in notebook.aligned(several._repr_html_())
    page = BeautifulSoup(notebook.aligned(several.T._repr_html_()), "html.parser")
    assert page.find("th", rowspan=True)["style"].endswith("vertical-align: top")
    assert page.style is None
    assert notebook.aligned(pd.DataFrame()._repr_html_())  # nothing in it


def test_tables_of_a_kernel_have_text_on_the_left(monkeypatch):
    kernel = SimpleNamespace(display_formatter=DisplayFormatter())
    monkeypatch.setattr(IPython, "get_ipython", lambda: kernel)
    notebook.text_to_the_left()
    shown, _ = kernel.display_formatter.format(pd.DataFrame({"a": ["word"]}))
    assert '<td style="text-align: left">word</td>' in shown["text/html"]
    assert "word" in shown["text/plain"]
