"""Controls for a notebook that a person runs, and the same figure, still, for one that is only read."""

import os


def control(draw, start, **options):
    """Sliders that redraw in JupyterLab; anywhere else, one call `draw(**start)`, which leaves a figure that stays.

    draw: a function of keyword arguments; start: {argument: value}; options: {argument: its values, in order}.
    A stored widget shows as an error where notebooks are hosted, and cannot be compared by tests: hence never stored.
    Taught in notebook 04, section 8.
    """
    if "JPY_SESSION_NAME" not in os.environ:  # set by a Jupyter server, and not by tools that execute notebooks
        return draw(**start)
    from ipywidgets import SelectionSlider, interact

    sliders = {name: SelectionSlider(options=values, value=start[name]) for name, values in options.items()}
    return interact(draw, **sliders)
