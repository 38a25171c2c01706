"""The design of a study: what is declared before anything runs, and how an arm is tuned.

A study compares arms on the same sentences. Each arm is tuned alone, by the declared validation
score, on seeds that are used for nothing else; then every arm runs on fresh seeds, and is tested
once. Taught in data/METHOD.md.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mtst_utils.backbones import DEFAULT
from mtst_utils.experiments.records import compact
from mtst_utils.experiments.verdicts import PROMISES

TUNING_SEEDS = (1000, 1001, 1002)
WIDEN = 2  # how often an axis may be widened
RATED, TWEETS = "rated sentences", "crowd tweets"  # the corpora
REGROUPED = "rated sentences, other splits"  # the first one, divided otherwise
LOSS_MARGIN = 0.05  # of a log loss, in nats: guessing among three labels costs 1.1
LEAST_SEEDS, LEAST_ELSEWHERE = 10, 5  # for a verdict: on the default backbone, on a larger one


@dataclass(frozen=True)
class Job:
    """One run of one arm: n training sentences of a corpus, drawn by seed. phase: "tune"
    (validation only) or "final" (test).
    """

    backbone: str
    n: int
    seed: int
    settings: dict
    phase: str = "final"
    scale: str = "full"
    corpus: str = RATED


@dataclass(frozen=True)
class Outcome:
    """scores: columns of a row; predictions: {task: codes [N test rows]} of a final run; details:
    whatever else, as JSON.
    """

    scores: dict[str, float]
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A way of training. run: Job -> Outcome. axes: {setting: values to try}, all combinations;
    what is the recipe's own (early stopping, cross-validation on the training labels) belongs to
    run. sizes: where it can run (None: everywhere). fixed: axes whose ends are the recipe's budget,
    and are not widened. later: declared when the others had run, so that its runs are of a commit
    of their own.
    """

    run: Callable[[Job], Outcome]
    axes: dict[str, tuple]
    about: str
    sizes: tuple[int, ...] | None = None
    needs: tuple[str, ...] = ()  # packages of the extra "studies"
    fixed: tuple[str, ...] = ()
    later: bool = False


@dataclass(frozen=True)
class Comparison:
    """A claim's two arms. promise: what the claim says of arm - rival, as in verdicts.PROMISES.
    later: written down when both had run.
    """

    claim: str
    arm: str
    rival: str
    promise: str
    metric: str = "sentiment macro F1"
    source: str = ""  # who says so
    later: bool = False


@dataclass(frozen=True)
class Study:
    """margins, seeds, tuned_at: by n, in the order in which they are run; tuned_at: the n at which
    arms were tuned. tuned_by: by n, the study whose tuning is taken over; {}: its own. splits: how
    many other splits of its corpus a study's seeds go through in turn; 0: all stay with the first.
    """

    name: str
    claims: tuple[str, ...]
    question: str
    corpus: str
    arms: dict[str, Arm]
    comparisons: tuple[Comparison, ...]
    metric: str
    validation: tuple[str, ...]  # columns of a row: their mean is what settings are chosen by
    margins: dict[int, float]
    seeds: dict[int, int]
    why: str
    tuned_at: dict[int, int]
    tuned_by: dict[int, str] = field(default_factory=dict)
    splits: int = 0

    def corpus_of(self, seed: int) -> str:
        """What `common.split` knows the corpus by that a seed draws from."""
        return split_name(1 + seed % self.splits) if self.splits else self.corpus

    def missing(self) -> list[str]:
        """What of the declaration is missing or at odds with itself; a study runs only if this is
        empty.
        """
        wanted = (
            "claims",
            "question",
            "corpus",
            "arms",
            "comparisons",
            "metric",
            "validation",
            "margins",
            "seeds",
            "why",
            "tuned_at",
        )
        found = [name for name in wanted if not getattr(self, name)]
        if not self.margins.keys() == self.seeds.keys() == self.tuned_at.keys():
            found.append("a margin, a number of seeds and a tuning size for every n")
        for c in self.comparisons:
            if not {c.arm, c.rival} <= set(self.arms) or c.promise not in PROMISES:
                found.append(f"arms or promise of {c.claim!r}")
        known = (REGROUPED,) if self.splits else (RATED, TWEETS)
        if self.corpus not in known:
            found.append(f"a corpus that is known ({', '.join(known)})")
        if len({tries(arm) for arm in self.arms.values() if arm.axes}) > 1:
            found.append("the same number of tries in each arm")
        if max(self.seeds.values(), default=0) > min(TUNING_SEEDS):
            found.append("final seeds apart from the tuning seeds")
        return found

    def repeated(
        self, name: str, corpus: str, arms: tuple[str, ...], sizes: tuple[int, ...], seeds: int
    ) -> "Study":
        """The same design on another corpus, for some of its arms and sizes, which run together."""

        def some(by_size: dict) -> dict:
            return {n: by_size[n] for n in sizes}

        return replace(
            self,
            name=name,
            corpus=corpus,
            arms={arm: replace(self.arms[arm], later=False) for arm in arms},
            comparisons=tuple(c for c in self.comparisons if {c.arm, c.rival} <= set(arms)),
            margins=some(self.margins),
            seeds=dict.fromkeys(sizes, seeds),
            tuned_at=some(self.tuned_at),
        )

    def margin(self, n: int, metric: str) -> float:
        """The margin of a metric: margins are of sentiment macro F1; domain accuracy, whose errors
        are a third as many, has half of it where there are more than 256 labels. A log loss
        ("rise") has one in nats.
        """
        if metric == "rise":
            return LOSS_MARGIN
        return self.margins[n] / (2 if metric == "domain accuracy" and n > 256 else 1)

    def wanted(self, n: int, backbone: str) -> int:
        """How many seeds: those declared, and half of them on another backbone than the default."""
        if backbone == DEFAULT:
            return self.seeds[n]
        return max(LEAST_ELSEWHERE, self.seeds[n] // 2)

    def arms_at(self, n: int) -> dict[str, Arm]:
        """The arms that run on n sentences."""
        return {name: arm for name, arm in self.arms.items() if arm.sizes is None or n in arm.sizes}


def split_name(number: int) -> str:
    """The rated sentences, split anew: a corpus of its own for whoever trains on it."""
    return f"{RATED}, split {number}"


def tries(arm: Arm) -> int:
    """How many settings of an arm are tried before its grid is widened."""
    return int(np.prod([len(values) for values in arm.axes.values()]))


def grid(arm: Arm) -> list[dict]:
    """All combinations of an arm's axes."""
    return [
        dict(zip(arm.axes, values, strict=True)) for values in itertools.product(*arm.axes.values())
    ]


def numeric(values: tuple) -> bool:
    """Whether an axis has an order, and so two edges that it can be widened at: numbers."""
    return len(values) > 1 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )


def best(scored: list[tuple[dict, float]]) -> dict:
    """The settings of the highest score; of equal ones the first tried."""
    return max(scored, key=lambda pair: pair[1])[0]


def beyond(arm: Arm, scored: list[tuple[dict, float]]) -> list[dict]:
    """Settings one step beyond each edge that the winner is on, with its other settings; none if it
    is on no edge.

    The step is the axis's own ratio. An axis that was widened WIDEN times stays as it is.
    """
    winner, new = best(scored), []
    for name, values in arm.axes.items():
        tried = sorted({settings[name] for settings, _ in scored}) if numeric(values) else []
        if name in arm.fixed or not tried or len(tried) - len(values) >= WIDEN:
            continue
        if winner[name] == tried[-1]:
            further = tried[-1] * tried[-1] / tried[-2]
        elif winner[name] == tried[0]:
            further = tried[0] * tried[0] / tried[1]
        else:
            continue
        whole = isinstance(tried[0], int)
        new.append(winner | {name: round(further) if whole else float(f"{further:.6g}")})
    return new


def at_edge(arm: Arm, scored: list[tuple[dict, float]]) -> str:
    """The axes on whose edge the winner still is, after widening; "" if none."""
    winner = best(scored)
    axes = {
        name: sorted({s[name] for s, _ in scored})
        for name, values in arm.axes.items()
        if numeric(values)
    }
    return " ".join(name for name, tried in axes.items() if winner[name] in (tried[0], tried[-1]))


def mean_scores(
    rows, wanted: list[dict], columns: tuple[str, ...], seeds: tuple[int, ...] = TUNING_SEEDS
) -> list[tuple[dict, float]]:
    """(settings, mean over the tuning seeds) of those wanted settings that have all seeds.

    rows: an arm's tuning rows; columns: those whose mean is the validation score.
    """
    found = []
    for settings in wanted:
        own = rows[(rows.settings == compact(settings)) & rows.seed.isin(seeds)]
        if set(own.seed) == set(seeds):
            found.append((settings, float(own[list(columns)].mean(axis=1).mean())))
    return found
