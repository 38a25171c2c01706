"""The ledger of the 26 claims: data/claims.csv, made anew by `python -m
mtst_utils.experiments.claims`.

Nothing in it is typed in: numbers come from the committed rows, verdicts from verdicts.py. A claim
is measured by the declared studies (findings.py). Where those have not run yet, it is by the runs
of before (EARLIER): arms that were not all tuned, five seeds, no predictions kept. Such a row says
tuned = no. Taught in data/METHOD.md.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtst_utils.experiments import findings, plots, results
from mtst_utils.experiments.corpora import DATA
from mtst_utils.experiments.designs import LEAST_ELSEWHERE, RATED
from mtst_utils.experiments.forgetting import FORGETTING_HARD
from mtst_utils.experiments.intervals import Estimate, apart, in_unit, of_seeds, t_interval
from mtst_utils.experiments.verdicts import carries_over, over_settings, p_value, verdict, with_holm
from mtst_utils.packaged_weights import DEFAULT

LEDGER = DATA / "claims.csv"
COLUMNS = """number claim source arm rival metric unit margin effect low high low90 high90 mde seeds
corpus backbone p_holm verdict notebook row_verdict survives tuned study n carries_over
later""".split()
TEXT = "the reference text"
CLAIMS = {  # number: what is claimed, who says so besides, where it is shown
    1: ("A paraphrase-tuned sentence model is a good starting point", "", "01, section 5"),
    2: (
        "Padding and truncation make batching possible without changing what a sentence means",
        "",
        "01, section 2",
    ),
    3: ("Mean pooling is simple and effective", "Reimers & Gurevych 2019", "01, section 5"),
    4: ("One shared encoder serves both tasks for the price of one", "", "02, section 3"),
    5: (
        "The summed loss trains both tasks jointly, without losing to two single-task models",
        "",
        "02, section 3",
    ),
    6: ("Everything frozen: nothing is learned", "", "03, section 2"),
    7: ("Everything frozen: the cheapest in time and memory", "", "03, section 3"),
    8: ("Everything frozen: cannot overfit a small data set", "", "03, section 2"),
    9: (
        "Everything frozen: embeddings are useful as they are when they fit the task",
        "",
        "03, section 2",
    ),
    10: ("Backbone frozen: the heads adapt", "", "03, section 3"),
    11: ("Backbone frozen: less overfitting, above all on little data", "", "03, section 3"),
    12: ("Backbone frozen: cheap to train", "", "03, section 3"),
    13: (
        "Backbone frozen: good when data are of moderate size and tasks near the pretraining",
        "",
        "03, section 3",
    ),
    14: ("One head frozen: it stays what it was, while the other task adapts", "", "03, section 4"),
    15: ("One head frozen: protects its task from catastrophic forgetting", "", "03, section 4"),
    16: ("One head frozen: leaves more of the training to the other task", "", "03, section 4"),
    17: (
        "Heads first, then gradual unfreezing, beats training everything from the start",
        "Howard & Ruder 2018",
        "03, section 5",
    ),
    18: (
        "A backbone rate below the heads' rate is better than one rate for all",
        "",
        "03, section 5",
    ),
    19: ("The model does not drift far from its pretrained representation", "", "03, section 5"),
    20: (
        "The choice of pretrained model matters more than the training recipe",
        "",
        "03, section 5",
    ),
    21: ("1e-4 is a sensible base rate", "", "04, section 5"),
    22: (
        "With decay 0.95 the early layers are updated more conservatively",
        "Howard & Ruder 2018",
        "04, section 4",
    ),
    23: ("Layer-wise rates fine-tune better", "Howard & Ruder 2018", "04, section 5"),
    24: ("Layer-wise rates overfit less", "", "04, section 5"),
    25: ("Layer-wise rates converge faster or more stably", "", "04, section 5"),
    26: (
        "With several tasks, layer-wise rates keep shared features and balance the tasks",
        "",
        "04, section 6",
    ),
}

# What of a claim was put to the test, where that is less than it says.
TESTED = {
    1: "against no pretraining; the same encoder before its paraphrase tuning was not to be had",
    4: "everything trained was timed before one task in every pair; in turn, step by step, they "
    "are level",
    12: "12 epochs of 128 sentences, 3 of 2,048: with more epochs the factor is larger",
    26: "0.95 on 200 sentences has other rates than its rival, which what is kept follows as well",
}


@dataclass(frozen=True)
class Quantity:
    """A number from the rows of an undeclared study: arm - rival in a metric, seed by seed.

    rival: another setting; "": nothing is taken off but `constant`. minus: a metric that is taken
    off the metric in both. rival_metric, rival_backbone: where the rival's differ. unit: "points"
    and "hundredths" are hundredths of a score; "times" is the arm's value over the rival's.
    """

    study: str
    arm: str
    rival: str
    metric: str
    minus: str = ""
    rival_metric: str = ""
    backbone: str = DEFAULT
    rival_backbone: str = ""
    unit: str = "points"
    constant: float = 0.0

    def by_seed(self) -> tuple[pd.Series, pd.Series]:
        """(the arm's values, the rival's), by seed. Raises ValueError for what has no rows."""
        table = _table(self.study)
        arm = _values(table, self.study, self.backbone, self.arm, self.metric, self.minus)
        if not self.rival:
            return arm, 0 * arm + self.constant
        where = self.rival_backbone or self.backbone
        metric = self.rival_metric or self.metric
        return arm, _values(table, self.study, where, self.rival, metric, self.minus)

    def differences(self) -> pd.Series:
        """The comparison by seed, in its unit."""
        arm, rival = self.by_seed()
        if self.unit == "times":
            return (arm / rival).dropna()
        scale = 100 if self.unit in ("points", "hundredths") else 1
        return (scale * (arm - rival)).dropna()

    def measure(self) -> dict[str, float]:
        """effect, low, high (95 % t interval over seeds), seeds."""
        each = self.differences()
        effect, low, high = t_interval(each)
        return {"effect": effect, "low": low, "high": high, "seeds": len(each)}


def effects(asked: dict[tuple[str, str], Quantity]) -> pd.DataFrame:
    """Comparisons by seed, as figures take them: a row a seed with the columns x, series, value.

    asked: {(x, series): comparison}.
    """
    parts = [
        pd.DataFrame({"x": x, "series": series, "value": quantity.differences()})
        for (x, series), quantity in asked.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _table(study: str) -> pd.DataFrame:
    rows = results.load(study)
    if study == "benchmarks":  # a run takes the part of a setting, a repeat that of a seed
        value = rows.seconds / rows.sentences
        rows = rows.assign(setting=rows.question + ": " + rows.run, seed=rows.repeat, value=value)
        rows = rows.assign(metric="seconds", backbone=DEFAULT)
    keys = ["backbone", "setting", "seed"]
    return rows.pivot_table(index=keys, columns="metric", values="value")


def _values(table, study: str, backbone: str, setting: str, metric: str, minus: str) -> pd.Series:
    try:
        own = table.loc[(backbone, setting)]
        return (own[metric] - (own[minus] if minus else 0)).dropna()
    except KeyError as missing:
        raise ValueError(
            f"{study}.csv has nothing of {missing}: {setting!r}, {metric!r} on {backbone}"
        ) from None


@dataclass(frozen=True)
class Earlier(Quantity):
    """A claim by runs of before. margin: in the unit (times: 0.05 is 5 %); 0: none was declared.

    called: (arm, rival, metric) in words, where the settings' own names say less.
    """

    number: int = 0
    promise: str = "gain"
    margin: float = 1.0
    called: tuple[str, str, str] | None = None

    def estimate(self) -> Estimate:
        """The comparison as verdicts need it: scores as they are; ratios as logarithms."""
        each = self.differences()
        scale = {"points": 100, "hundredths": 100}.get(self.unit, 1)
        return of_seeds(np.log(each) if self.unit == "times" else each / scale)


F1, ACCURACY, MPNET = "sentiment macro F1", "domain accuracy", "all-mpnet-base-v2"
HALF = {"metric": ACCURACY, "margin": 0.5}
TIMES = {"metric": "seconds", "unit": "times", "margin": 0.05}
ANSWERED = "both tasks answered: "
STEP = "a training step for both tasks or one: "
EPOCH = "one epoch with a part frozen, all-MiniLM-L6-v2: "
GAP = {"metric": "training, sentiment accuracy", "minus": "sentiment accuracy"}
COSINE = ("a sentence in a batch of 32", "alone", "lowest cosine")
GAP_F1 = {"metric": f"training, {F1}", "minus": F1}
RULE, FLAT, TWICE = "decay 0.95, rate 0.0001", "decay 1, rate 0.0001", "decay 0.95, rate 0.0002"
KEPT = {"metric": "correlation of similarities", "unit": "hundredths"}


OF_FEW = ("layerwise_few",)  # on 200 sentences: as everywhere with 256 or fewer, 2 points


def _earlier(number: int, study: str, arm: str, rival: str, metric: str = F1, **options):
    if study in OF_FEW and "unit" not in options:
        options.setdefault("margin", 2.0)
    return Earlier(study, arm, rival, metric, number=number, **options)


EARLIER = [
    _earlier(1, "choices", "pretrained", "random", f"mean, {F1}", promise="practical gain"),
    _earlier(
        2,
        "padding",
        "mean",
        "",
        "cosine to alone, lowest",
        unit="cosine",
        constant=1.0,
        promise="no loss",
        margin=0.001,
        called=COSINE,
    ),
    *(
        _earlier(
            3,
            "choices",
            "pretrained",
            "pretrained",
            f"mean, {F1}",
            rival_metric=f"{pooling}, {F1}",
            promise="no loss",
            called=("mean", pooling, F1),
        )
        for pooling in ("cls", "max", "unmasked mean")
    ),
    _earlier(
        4,
        "benchmarks",
        f"{ANSWERED}two models",
        f"{ANSWERED}one encoder, two heads",
        promise="practical gain",
        called=("two models", "one encoder, two heads", "seconds"),
        **TIMES,
    ),
    _earlier(  # a check on the study `cost`, where the order of the two is the same in every pair
        4,
        "benchmarks",
        f"{STEP}one task",
        f"{STEP}both tasks",
        promise="no loss",
        called=("both tasks", "one task", "seconds a step, in turn"),
        **TIMES,
    ),
    *(
        _earlier(
            5, "multitask", "joint", f"{task} only", backbone=backbone, promise="no loss", **how
        )
        for backbone in (DEFAULT, MPNET)
        for task, how in (("sentiment", {}), ("domain", HALF))
    ),
    _earlier(
        7,
        "benchmarks",
        f"{EPOCH}everything",
        f"{EPOCH}heads alone, without the cache",
        promise="practical gain",
        called=("everything trained", "heads alone, without the cache", "seconds an epoch"),
        **TIMES,
    ),
    *(
        _earlier(
            9,
            "untrained",
            "pretrained",
            "random",
            f"nearest centroid, {metric}",
            promise="practical gain",
            margin=margin,
        )
        for metric, margin in ((F1, 1.0), (ACCURACY, 0.5))
    ),
    _earlier(10, "labels", "backbone frozen, 2048", "backbone frozen, 32"),
    *(
        _earlier(
            11,
            "labels",
            "everything trained, 2048",
            f"{probe}, 2048",
            called=("everything trained", probe, "sentiment accuracy, training - test"),
            **GAP,
        )
        for probe in ("backbone frozen", "two-block probe")
    ),
    _earlier(
        12,
        "benchmarks",
        f"{EPOCH}everything",
        f"{EPOCH}heads alone, with the cache filled",
        promise="practical gain",
        called=("everything trained", "heads alone, the cache filled", "seconds an epoch"),
        **TIMES,
    ),
    *(
        _earlier(
            13,
            "labels",
            f"two-block probe, {n}",
            f"everything trained, {n}",
            promise="no loss",
            margin=margin,
            called=("two-block probe", "everything trained", F1),
        )
        for n, margin in ((32, 2.0), (128, 2.0), (512, 1.0))
    ),
    *(
        _earlier(
            15,
            study,
            "head A frozen",
            "",
            minus=f"before, {ACCURACY}",
            promise="no loss",
            called=(f"after task B{case}", "before it", ACCURACY),
            **HALF,
        )
        for study, case in (("forgetting", ""), ("forgetting_hard", " of movie reviews alone"))
    ),
    _earlier(16, "forgetting", "joint, head A frozen", "joint", promise="no loss"),
    _earlier(17, "transfer", "gradual, 0.0003", "heads 10 times, 0.0003"),
    _earlier(17, "layerwise_many", "gradual, decay 1, rate 0.0002", "decay 1, rate 0.0002"),
    _earlier(17, "transfer", "gradual, 0.0003", "heads 10 times, 0.0003", backbone=MPNET),
    *(
        _earlier(18, "transfer", "heads 10 times, 0.0003", "one rate, 0.0003", backbone=backbone)
        for backbone in (DEFAULT, MPNET)
    ),
    *(
        _earlier(
            19,
            "transfer",
            "heads 10 times, 0.0003",
            "",
            f"cosine to before, block {top}",
            backbone=backbone,
            unit="cosine",
            margin=0,
        )
        for backbone, top in ((DEFAULT, 5), (MPNET, 11))
    ),
    Earlier(
        "transfer",
        "probe",
        "heads 10 times, 0.0003",
        F1,
        backbone=MPNET,
        rival_backbone=DEFAULT,
        number=20,
    ),
    _earlier(21, "layerwise_many", RULE, TWICE, promise="no loss"),
    _earlier(21, "layerwise_few", RULE, TWICE, backbone=MPNET, promise="no loss"),
    *(
        _earlier(number, study, arm, rival, backbone=backbone, **how)
        for study, backbone in (("layerwise_many", DEFAULT), ("layerwise_few", MPNET))
        for number, arm, rival, how in (
            (22, FLAT, RULE, TIMES | {"metric": "distance to pretrained, block 0"}),
            (23, RULE, FLAT, {}),
            (25, RULE, FLAT, {"metric": f"valid, {F1}, step 40"}),
            (26, RULE, FLAT, KEPT),
        )
    ),
    *(
        _earlier(
            24,
            "layerwise_few",
            FLAT,
            RULE,
            backbone=backbone,
            called=(FLAT, RULE, f"{F1}, training - test"),
            **GAP_F1,
        )
        for backbone in (DEFAULT, MPNET)
    ),
]
# Arms whose names say little beside others' than their study's.
PLAIN = {"none": "head A frozen alone", "before": "before task B"}
# Runs of before stay at the sizes and backbones that no declared study has yet (4: the time to
# answer, of which `cost`, the time to train, says nothing).
BY_SIZE = {1, 2, 3, 4, 5, 13, 15, 17, 18, 20, 21, 23, 24, 25, 26}
BESIDE = {  # what is tested beside the claims, by its name in the declarations
    "remedy": "A remedy keeps more of both tasks than head A frozen alone",
    "kept": "A remedy keeps the first task where it was",
    "over frozen": "A remedy keeps more of both tasks than a frozen backbone",
    "search": "Few labels: what a probe's settings should be set on, or searched among",
    "LoRA": "LoRA loses nothing",
    "SetFit": "SetFit is ahead",
    "top blocks": "Training the upper half of the blocks loses nothing",
    "probe": "Gradual unfreezing is ahead of a probe",
    "order": "Gradual unfreezing is ahead of its steps from the bottom up",
    "one by one": "Gradual unfreezing is ahead of all layers at once, at the mean of its steps",
    "late": "All layers at once, later, are ahead of everything from the start",
    "less": "A shorter training is ahead of a longer one, everything from the start in both",
    "late, not less": "All layers at once, later, are ahead of a shorter training from the start",
    "profile": "Gradual unfreezing is ahead of fixed rates of about its profile",
    "partner": "Sentiment loses nothing by what it shares its encoder with",
    "training": "Fine-tuning is ahead of frozen features, the mean pooled in both",
    "model": "The larger model is ahead, each tuned",
    "recipe": "A tuned recipe is ahead of one that is copied",
    "drift": "Gradual unfreezing stays nearer to the pretrained encoder",
    "head A's cost": "A frozen head costs nothing",
}
# What cannot come out otherwise: (number, study, arm, what it is measured by, minus).
BY_CONSTRUCTION = (
    (6, "frozen", "everything frozen", "largest change, encoder", ""),
    (8, "frozen", "everything frozen", f"training, {F1}", f"before, training, {F1}"),
    (14, "frozen", "head A frozen", "largest change, head A", ""),
)


def ledger() -> pd.DataFrame:
    """data/claims.csv, a row a comparison, by number: the default backbone first, then others.

    number, claim, source (who says so); arm, rival, metric, unit; margin; effect with its 95 % and
    90 % interval (turned so that above zero, or above 1 for times, is what the claim promises); mde
    (minimal detectable effect); seeds, corpus, backbone; p_holm; verdict (of the claim on this
    backbone and corpus); notebook. Besides: row_verdict (of this comparison alone), survives
    (whether what is clear is clear still after Holm's correction over `family`), tuned (no: of the
    runs before designs were declared), study, n (training sentences), carries_over (of another
    corpus than the first: whether the verdict is the same there), later (yes: the comparison or one
    of its arms was declared when others had run).
    """
    return pd.read_csv(LEDGER, keep_default_na=False, na_values=[""])


def differences(row) -> np.ndarray:
    """What each seed of a ledger's row gave, in its unit; the row's metric is a score."""
    if row.tuned == "yes":
        arms = int(row.n), row.arm, row.rival, row.metric
        return findings.by_seed(row.study, row.backbone, *arms)
    where = {"backbone": row.backbone, "unit": row.unit}
    return Quantity(row.study, row.arm, row.rival, row.metric, **where).differences().to_numpy()


def measured() -> pd.DataFrame:
    """The ledger from the committed rows: of `family`, the 26 claims."""
    table = family()
    return table[table.number > 0].reset_index(drop=True)[COLUMNS]


def beside() -> pd.DataFrame:
    """Of `family`, what was declared and tested beside the 26 claims: remedies against forgetting,
    LoRA, SetFit and others; claim says which.
    """
    table, order = family().query("number == 0"), list(BESIDE.values())
    # The first corpus first: a claim's own line has its verdict.
    table = table.assign(place=table.claim.map(order.index), elsewhere=table.corpus != RATED)
    return table.sort_values(["place", "elsewhere", "n"], kind="stable", ignore_index=True)


def family() -> pd.DataFrame:
    """Every test that is told of, with Holm's correction over all of them together. number: 0 for
    those beside the 26 claims.
    """
    rows = [_by_construction(*part) for part in BY_CONSTRUCTION]
    declared = findings.ledger()
    declared = declared[declared.verdict != "unfinished"]
    declared = declared.assign(
        topic=declared.number,
        number=pd.to_numeric(declared.number, errors="coerce").fillna(0).astype(int),
        tuned="yes",
    )
    declared = declared.replace({"arm": PLAIN, "rival": PLAIN})
    declared.loc[declared.study == FORGETTING_HARD.name, "arm"] += " (B: movie reviews)"
    first = declared[declared.corpus == RATED]
    done = set(first.number)
    sizes = set(zip(first.number, first.n, first.backbone, strict=True))
    earlier = pd.DataFrame([_row(earlier) for earlier in EARLIER])
    stays = [
        (number, *where) not in sizes if number in BY_SIZE else number not in done
        for number, *where in zip(earlier.number, earlier.n, earlier.backbone, strict=True)
    ]
    table = pd.concat(
        [declared.rename(columns={"verdict": "row_verdict"}), earlier[stays], pd.DataFrame(rows)]
    )
    claimed = table.number > 0
    for name, place in (("claim", 0), ("notebook", 2)):
        words = table.number[claimed].map(lambda number, place=place: CLAIMS[number][place])
        table.loc[claimed, name] = words
    table.loc[~claimed, "claim"] = table.topic[~claimed].map(BESIDE)
    table.loc[claimed, "source"] = table.number[claimed].map(
        lambda number: "; ".join(filter(None, (TEXT, CLAIMS[number][1])))
    )
    order = {"backbone": table.backbone != DEFAULT, "corpus": table.corpus != RATED}
    table = table.assign(**{f"other {name}": other for name, other in order.items()})
    table = table.sort_values(
        ["number", *(f"other {name}" for name in order)], kind="stable", ignore_index=True
    )
    for _, part in table.groupby(["number", "claim", "backbone", "corpus"]):
        table.loc[part.index, "verdict"] = over_settings(part.assign(verdict=part.row_verdict))
    same = ["number", "claim", "arm", "rival", "metric", "n", "backbone"]
    first = table[table.corpus == RATED]
    keys = first[same].itertuples(index=False, name=None)
    there = dict(zip(keys, first.itertuples(), strict=True))
    table["carries_over"] = [
        carries_over(known.row_verdict, row.row_verdict, *apart(row, known)[1:])
        if row.corpus != RATED and (known := there.get(tuple(getattr(row, name) for name in same)))
        else ""
        for row in table.itertuples()
    ]
    return with_holm(table)


def _by_construction(number: int, study: str, arm: str, metric: str, minus: str) -> dict:
    quantity = Quantity(study, arm, "", metric, minus, unit="largest change")
    found = quantity.measure()
    row = {"number": number, "study": study, "arm": arm, "metric": metric, "tuned": "no"}
    row |= {"unit": "largest change", "effect": found["effect"], "seeds": found["seeds"]}
    return row | _facts(quantity) | {"row_verdict": "by construction", "sign": 0}


def _row(earlier: Earlier) -> dict:
    found, unit = earlier.estimate(), earlier.unit
    scale = 100 if unit in ("points", "hundredths") else 1
    margin = np.log1p(earlier.margin) if unit == "times" else earlier.margin / scale
    metric = earlier.metric + (f" - {earlier.minus}" if earlier.minus else "")
    arm = earlier.arm + (f" on {earlier.backbone}" if earlier.rival_backbone else "")
    arm, rival, metric = earlier.called or (arm, earlier.rival, metric)
    row = found.numbers(unit) | {
        "number": earlier.number,
        "arm": arm,
        "rival": rival,
        "metric": metric,
        "unit": unit,
        "margin": in_unit(margin, unit),
        "seeds": found.seeds,
        "row_verdict": verdict(found, margin, earlier.promise) if margin else "cannot tell",
        "p": p_value(found, margin, earlier.promise),
        "tuned": "no",
        "study": earlier.study,
    }
    if not margin:  # none was declared: no test is made
        row |= {"margin": np.nan, "p": np.nan, "sign": 0}
    if found.seeds < LEAST_ELSEWHERE:
        row["row_verdict"] = "cannot tell"
    return row | _facts(earlier)


def _facts(quantity: Quantity) -> dict:
    """Corpus, backbone, and how many training sentences the arm had."""
    facts = {"corpus": RATED, "backbone": quantity.rival_backbone or quantity.backbone}
    if quantity.study != "benchmarks":
        rows = results.load(quantity.study, quantity.backbone)
        facts["n"] = int(rows.n[rows.setting == quantity.arm].iloc[0])
    return facts


def names(table: pd.DataFrame) -> list[str]:
    """What each row of the ledger is called in a figure: [N] strings."""
    called = []
    for _, rows in table.groupby("number", sort=False):
        varies = [
            name for name in ("metric", "n", "backbone", "corpus") if rows[name].nunique() > 1
        ]
        for row in rows.itertuples():
            words = [f"{row.arm} against {row.rival}", *(_word(row, name) for name in varies)]
            own = ", ".join(filter(None, words)) if len(rows) > 1 else row.claim
            called.append(f"{row.number}: {own}")
    return called


def _word(row, name: str) -> str:
    """What a column says of a row, for a figure; nothing for the default backbone."""
    if name == "n":
        return f"{row.n:g} sentences"
    value = getattr(row, name)
    return "" if value in (DEFAULT, RATED) else value


def _apart(row) -> str:
    """What sets a row of a claim apart from others of it."""
    rival = f" against {row.rival}" if isinstance(row.rival, str) else ""
    size = f", {row.n:g} sentences" if row.n == row.n else ""
    where = "" if row.backbone == DEFAULT else f", on {row.backbone}"
    where += "" if row.corpus == RATED else f", on {row.corpus}"
    return f"{row.arm}{rival}, {row.metric}{size}{where}"


def written(row) -> str:
    """An effect with its interval and unit, as text."""
    digits = ".1f" if row.unit in ("points", "hundredths") else ".3g"
    digits = ".3f" if row.unit == "times" and row.effect < 2 else digits
    digits = ".0e" if 0 < abs(row.effect) < 1e-3 else digits
    numbers = [f"{value:{digits}}".replace("-", "−") for value in (row.effect, row.low, row.high)]
    if row.low != row.low:  # by construction: there is nothing to be uncertain of
        return f"{numbers[0]} {row.unit}"
    return f"{numbers[0]} {row.unit} [{numbers[1]}, {numbers[2]}]"


def _beside(row) -> str | None:
    """What stands in a figure of points in place of a dot; None where the dot is drawn."""
    if row.unit == "points":
        return None
    tiny = abs(row.effect) < 1e-3  # its interval would run into the verdict
    return written(row).partition(" [")[0] if tiny else written(row)


def markdown(table: pd.DataFrame) -> str:
    """The ledger as a Markdown table; ° marks rows of the runs before designs were declared, later
    those of arms or comparisons that were declared when others had run. On a claim's own line is
    its verdict on the default backbone and the first corpus.
    """
    lines = [
        "| | claim, and what was compared | effect, 95 % interval | detectable | seeds | verdict "
        "| shown in |",
        "|---|---|---|---|---|---|---|",
    ]
    number = None
    for row in table.itertuples():
        mark = "" if row.tuned == "yes" or row.verdict == "by construction" else " °"
        mark += ", later" if row.later == "yes" else ""
        mark += " (not after Holm)" if row.survives is False or row.survives == "False" else ""
        if (row.number, row.claim) != number:
            number = (row.number, row.claim)
            place = row.notebook if row.number else ""
            name = f"{row.number} | **{row.claim}**" if row.number else f"| **{row.claim}**"
            name += f" ({TESTED[row.number]})" if row.number in TESTED else ""
            lines.append(f"| {name} | | | | {'**' + row.verdict + '**'} | {place} |")
        if row.carries_over == row.carries_over and row.carries_over:
            mark += f"; carries over: {row.carries_over}"
        mde = "" if row.mde != row.mde else f"{row.mde:{'.4g' if row.unit == 'times' else '.2g'}}"
        verdict_here = f"*{row.row_verdict}*{mark}"
        lines.append(
            f"| | {_apart(row)} | {written(row)} | {mde} | {row.seeds} | {verdict_here} | |"
        )
    return "\n".join(lines)


def main() -> None:
    # Further digits differ between processors.
    measured().to_csv(LEDGER, index=False, float_format="%.12g")
    table = ledger()
    here = (table.backbone == DEFAULT) & (table.corpus == RATED)
    shown = table[here & ~table.duplicated(["number", "backbone"])]
    axes = plots.verdicts(
        shown.set_axis(names(shown)),
        [_beside(row) for row in shown.itertuples()],
        "A pretrained model is far ahead of none; of most recipes no gain shows",
        "points of the score; above zero is what the claim promises; 95 % interval",
    )
    axes.figure.savefig(LEDGER.with_suffix(".png"), dpi=100, bbox_inches="tight")
    print(f"{markdown(table)}\n\n{markdown(beside())}")


if __name__ == "__main__":
    main()
