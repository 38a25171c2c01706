"""Controls for a notebook that a person runs, and the same output, still, for one that is only read."""

import os


def control(draw, start, **options):
    """Controls that redraw in JupyterLab; anywhere else, one call `draw(**start)`, whose output stays.

    draw: a function of keyword arguments; start: {argument: value}; options: {argument: its values, in order} for a slider.
    An argument without options is a text to type in, taken over when the field is left.
    A stored widget shows as an error where notebooks are hosted, and cannot be compared by tests: hence never stored.
    Taught in notebook 04, section 8.
    """
    if "JPY_SESSION_NAME" not in os.environ:  # set by a Jupyter server, and not by tools that execute notebooks
        return draw(**start)
    from ipywidgets import Layout, SelectionSlider, Textarea, interact

    wide = Layout(width="95%", height="8em")
    controls = {name: SelectionSlider(options=options[name], value=value) if name in options
                else Textarea(value=value, continuous_update=False, layout=wide) for name, value in start.items()}  # fmt: skip
    return interact(draw, **controls)
