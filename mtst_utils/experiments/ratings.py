"""Learning the rating itself: the mean of some twenty human ratings, from -4 to 4, as eight classes
in order.

Three classes throw away how strongly a sentence is meant, and call a rating of 0.4 neutral although
it has a sign. Steps of width one with a border at zero keep both, and a head learns them as it
learns any other labels.
"""

import numpy as np

CENTERS = np.arange(-3.5, 4)
STEPS = tuple(f"{center - 0.5:+.0f} to {center + 0.5:+.0f}" for center in CENTERS)


def rating_step(rating):
    """Ratings [N] -> the names of their steps [N]; a border belongs to the step above, 4 to the
    last.

    Raises ValueError for a rating outside [-4, 4].
    """
    rating = np.asarray(rating, float)
    outside = np.flatnonzero(~(np.abs(rating) <= 4))
    if len(outside):
        raise ValueError(
            f"ratings must be from -4 to 4; got {rating[outside[0]]} at position {outside[0]}"
        )
    return np.array(STEPS)[np.floor(rating).astype(int).clip(-4, 3) + 4]


def expected_rating(probability):
    """Probabilities of the steps [N, 8] -> the rating to be expected [N], in [-3.5, 3.5]."""
    return probability @ CENTERS
