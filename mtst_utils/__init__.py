"""The thin package behind the notebooks: what a user takes home.

The course's experiments are in `mtst_utils.experiments`.
"""

from mtst_utils.backbones import load_backbone
from mtst_utils.callbacks import Callback, EarlyStopping, GradualUnfreezing
from mtst_utils.encoder import SentenceEncoder, cosine_matrix
from mtst_utils.evaluation import evaluate
from mtst_utils.frames import load_csv
from mtst_utils.freezing import freeze, parameter_report, unfreeze, unfreeze_top_blocks
from mtst_utils.layers import layer_stack
from mtst_utils.learning_rates import layerwise_lr_groups, lr_table, warmup_linear
from mtst_utils.multitask import (
    MultiLabelTask,
    MultiTaskModel,
    MultiTaskOutput,
    RegressionTask,
    Task,
)
from mtst_utils.packaged_weights import BackboneNotAvailable
from mtst_utils.pooling import masked_mean
from mtst_utils.training import History, fit, seed_everything

_CORPORA = (
    "CorpusNotAvailable",
    "load_crowd_tweets",
    "load_human_ratings",
    "load_rated_sentences",
    "load_sample_sentences",
    "load_triplets",
)


def __getattr__(name: str) -> object:
    """The course's corpora, imported when asked for: nothing in the core depends on them."""
    if name in _CORPORA:
        from mtst_utils.experiments import corpora

        return getattr(corpora, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_CORPORA])
