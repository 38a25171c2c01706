"""A rating's step, and the rating expected from the steps' probabilities."""

import numpy as np
import pytest

from mtst_utils.experiments import multi_task, studies, transfer
from mtst_utils.experiments.corpora import (
    RATING_CENTERS,
    RATING_STEPS,
    SENTIMENTS,
    expected_rating,
    load_rated_sentences,
    rating_step,
)
from mtst_utils.multitask import Task


def test_steps_have_width_one_and_a_border_at_zero():
    ratings = [-4, -3.01, -1, -0.01, 0, 0.99, 1, 3.99, 4]
    assert rating_step(ratings).tolist() == [RATING_STEPS[i] for i in (0, 0, 3, 3, 4, 4, 5, 7, 7)]
    assert RATING_STEPS[3:5] == ("-1 to +0", "+0 to +1")
    assert len(RATING_STEPS) == len(RATING_CENTERS) == 8


def test_expected_rating_is_within_half_a_step_and_keeps_the_sign():
    ratings = load_rated_sentences().rating.to_numpy()
    sure = np.eye(8)[[RATING_STEPS.index(step) for step in rating_step(ratings)]]
    assert np.abs(expected_rating(sure) - ratings).max() <= 0.5
    assert (np.sign(expected_rating(sure)) == np.sign(ratings))[ratings != 0].all()
    assert expected_rating(np.full((1, 8), 1 / 8)) == pytest.approx([0])


@pytest.mark.parametrize("value", [4.1, -5.0, np.nan, np.inf])
def test_a_rating_outside_the_scale_is_named(value):
    with pytest.raises(ValueError, match=f"from -4 to 4; got {value} at position 1"):
        rating_step([0, value])


class Perfect:
    """Knows every rating's step, and has a sentiment head that finds everything negative."""

    def __init__(self, rows):
        self.rows = rows
        self.tasks = {
            "rating step": Task("rating step", RATING_STEPS),
            "sentiment": Task("sentiment", SENTIMENTS),
        }

    def probabilities(self, texts):
        steps = np.eye(8)[[RATING_STEPS.index(step) for step in self.rows["rating step"]]]
        return {"rating step": steps, "sentiment": np.tile([1.0, 0, 0], (len(texts), 1))}


def test_a_learned_rating_is_what_the_papers_figures_are_of():
    corpus = load_rated_sentences()
    rows = corpus[(corpus.split == "valid") & (corpus.rating != 0)]
    rows = rows.assign(**{"rating step": rating_step(rows.rating)})
    scores = multi_task.scores_on(Perfect(rows), rows, "valid, ")
    assert scores["valid, rating step accuracy"] == 1
    assert all(scores[f"valid, {domain}, sign F1"] == 1 for domain in rows.domain.unique())
    assert scores["valid, sentiment accuracy"] == pytest.approx(
        (rows.sentiment == "negative").mean()
    )


@pytest.mark.filterwarnings("ignore:.*were cut there")
def test_a_rating_learned_as_a_number_is_what_the_papers_figures_are_of(monkeypatch, tiny_encoder):
    monkeypatch.setattr(transfer.SentenceEncoder, "from_pretrained", lambda name: tiny_encoder)
    run = studies.STUDIES["paper_recipes"]["rating as a number, three classes, domain"]
    _, scores = run(None, 0, "quick", n=64, epochs=1)
    steps = studies.STUDIES["paper_recipes"]["rating, three classes, domain"]
    _, expected = steps(None, 0, "quick", n=64, epochs=1)
    assert set(expected) - set(scores) == {
        "valid, rating step accuracy",
        "valid, rating step macro F1",
    }
    assert set(scores) <= set(expected)
    model = transfer.new_model(tasks=("rating", "sentiment"))
    rows = load_rated_sentences().query("split == 'valid'")[:200]
    said = model.probabilities(rows.text)["rating"][:, 0]
    table = multi_task.paper_scores(said, rows.rating, rows.domain)
    found = multi_task.scores_on(model, rows)
    for domain in table.index:
        assert found[f"{domain}, r"] == pytest.approx(table.loc[domain, "r"], abs=1e-3)
