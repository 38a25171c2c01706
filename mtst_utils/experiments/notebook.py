"""What the cells of a notebook show: controls for a person who runs it, sentences that are fit for
a class.
"""

import codecs
import inspect
import os
import re
import warnings

import pandas as pd

# Swear words, slurs and what is explicit, turned by 13 letters, so that whoever reads this file
# need not read them. In four
# groups: anywhere in a word; at its start; the whole word; and letters hidden by asterisks. A
# harmless word that is caught
# too costs one sentence of thousands.
_UNFIT = codecs.decode(
    r"(?:shpx|shx|spx|fuvg|ovgpu|ovngpu|phag|fyhg|avtt|snttbg|zbgures|nffubyr|nffbyr|qvyqb|cravf|intva|cbea|oybjwbo|znfgheo|tbqqnz|zbyrfg)"
    r"|\o(?:onfgneq|ovzob|obbo|obyybpx|pencc|pencb|pencf|pench|qnza|qnzzvg|qbhpur|rwnphyng|rebgvp|sneg|srgvfu|sevtt|uneqnff|ubbxre|ubeal"
    r"|vaprfg|wnpxnff|wvmm|xvpxnff|betnfz|betl|betvrf|creireg|cvff|cebfgvghg|chffl|encvat|encvfg|ergneq|fperj|frkl|frkg|frkc|funttvat|fxnax"
    r"|fhpx|gvggvr|genaal|jnax|juber|jrgonpx)"
    r"|\o(?:nany|nahf|nefr|nff|nffrq|nffrf|of|puvax|pbpx|pbpxf|pbba|pbbaf|penc|phz|qvpx|qvpxf|qvpxvat|qlxr|rssvat|snt|sntf|szy|sevtva|tbbx"
    r"|uryy|ub|ubr|ubrf|ubzb|uhzcvat|xvxr|yzsnb|zbsb|anxrq|ahqr|bzst|cnxv|cvzc|cvzcf|cbbcre|cevpx|cevpxf|encr|encrq|encrf|erqarpx|fphz"
    r"|frk|funt|fcvp|fgsh|gvg|gvgf|gheq|gheqf|gjng|jgs)\o",
    "rot13",  # which turns \o into \b, a word's edge
)
UNFIT = re.compile(_UNFIT + r"|\b[a-z]+\*+[a-z*&]", re.IGNORECASE)
# What is said of a person, beside a user name, a hashtag or a name: abuse of somebody who can be
# found. Said of a film it stays.
_INSULT = (
    r"\b(?i:bull(?:y|ies)|cheat(?:s|er|ers|ed|ing)?|clowns?|cowards?|crooks?|crybab(?:y|ies)|disgrac\w*|disgust\w*"
    r"|dumb\w*|fat|fools?|frauds?|garbage|hate[ds]?|hypocrit\w*|idiot\w*|imbecile\w*|incompeten\w*"
    r"|jerks?|liars?|lie[ds]|losers?|lying|moron\w*|pathetic|pigs?|psycho\w*|punks?|scum\w*|stupid\w*"
    r"|thugs?|trash\w*|ugly|whin(?:e|er|ers|ing|y))\b"
)
_NAME = r"(?:@\w|#\w|(?<=[a-z,] )[A-Z][a-z])"
ABUSE = re.compile(f"{_INSULT}.*{_NAME}|{_NAME}.*{_INSULT}", re.DOTALL)


def presentable(frame, column="text"):
    """The rows of a frame whose text can be shown to a class: without swear words, slurs, what is
    explicit, and insults of somebody who is named.

    For what is shown, never for what is trained or scored on. Taught in notebook 01, section 7.
    """
    return frame[~frame[column].str.contains(UNFIT) & ~frame[column].str.contains(ABUSE)]


def show_source(*things, folded=""):
    """The source of functions and classes as a cell's output: the code that runs, not a copy of
    it. folded: a line to click on, below which it is hidden until then.
    """
    from IPython.display import Markdown

    source = "```python\n" + "\n\n".join(map(inspect.getsource, things)) + "```"
    if folded:
        source = f"<details><summary>{folded}</summary>\n\n{source}\n\n</details>"
    return Markdown(source)


def text_to_the_left() -> None:
    """From here on, tables that this kernel shows have text on the left of its column, and numbers
    on the right.
    """
    from IPython import get_ipython

    formatter = get_ipython().display_formatter.formatters["text/html"]
    formatter.for_type(pd.DataFrame, lambda frame: aligned(frame._repr_html_()))


def aligned(html: str) -> str:
    """A table that pandas wrote as HTML, with the names of its rows, and its columns of text, on
    the left; a name of several rows at their top. Without pandas' own style sheet: hosting pages
    leave it out.
    """
    from bs4 import BeautifulSoup

    page = BeautifulSoup(html, "html.parser")
    if page.style:
        page.style.decompose()
    body, words = page.tbody, re.compile(r"[^\W\d_]{2}")
    rows = [row("td") for row in body("tr")]
    width = max(map(len, rows), default=0)
    text = {i for row in rows for i, cell in enumerate(row) if words.search(cell.text)}
    moved = [*body("th"), *(row[i] for row in rows for i in text)]
    for heads in (row("th") for row in page.thead("tr")):
        if (names := len(heads) - width) >= 0:  # not where one stands over several columns
            moved += [head for i, head in enumerate(heads) if i < names or i - names in text]
    for cell in moved:
        cell["style"] = "text-align: left"
        if cell.has_attr("rowspan"):
            cell["style"] += "; vertical-align: top"
    return str(page)


def control(draw, start, **options):
    """One call `draw(**start)`, whose output stays; in JupyterLab also, above it, controls that
    draw anew.

    draw: a function of keyword arguments; start: {argument: value}; options: {argument: its values,
    in order} for a slider. An argument without options is a text to type in. Taught in notebook 04,
    section 8.
    """
    if (
        "JPY_SESSION_NAME" in os.environ
    ):  # set by a Jupyter server, and not by tools that execute notebooks
        from IPython.display import display

        view = controls(draw, start, options)._repr_mimebundle_()
        del view[
            "text/plain"
        ]  # a page that cannot show controls shows nothing, and tests compare what all runs have
        display(view, raw=True)
    draw(**start)


def controls(draw, start, options):
    """The widgets of `control`: a field or a slider an argument, one line that says when they draw,
    and where they draw.
    """
    from ipywidgets import HTML, Layout, Output, SelectionSlider, Textarea, VBox

    shown = Output()
    wide = Layout(width="95%", height="8em")
    fields = {}
    for name, value in start.items():
        if name in options:
            slider = {"options": options[name], "description": name.replace("_", " ")}
            fields[name] = SelectionSlider(value=value, continuous_update=False, **slider)
        else:
            fields[name] = Textarea(value=value, continuous_update=False, layout=wide)
    when = "you let go of a slider" if options else "you click outside the field"
    hint = HTML(f"Drawn anew here when {when}; below stays the stored example.")

    def redraw(_):
        shown.clear_output(wait=True)
        with shown:
            _show(draw, {name: field.value for name, field in fields.items()})

    for field in fields.values():
        field.observe(redraw, "value")
    return VBox([*fields.values(), hint, shown])


def _show(draw, values):
    """Draw; and whatever a person has typed, answer in a line of plain text rather than with a
    screen of traceback.
    """
    if any(isinstance(value, str) and not value.strip() for value in values.values()):
        print("The field is empty: type a sentence.")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            draw(**values)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"Note: {message}")
