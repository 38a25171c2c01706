"""The thin package behind the notebooks."""

from mtst_utils.backbones import BackboneNotAvailable, load_backbone
from mtst_utils.corpora import (
    CorpusNotAvailable,
    load_csv,
    load_human_ratings,
    load_rated_sentences,
    load_sample_sentences,
    load_triplets,
)
from mtst_utils.encoder import SentenceEncoder, cosine_matrix
from mtst_utils.freezing import GradualUnfreezing, freeze, parameter_report, unfreeze, unfreeze_top_blocks
from mtst_utils.layers import layer_stack
from mtst_utils.learning_rates import layerwise_lr_groups, lr_table, warmup_linear
from mtst_utils.multitask import MultiTaskModel, MultiTaskOutput, Task
from mtst_utils.pooling import masked_mean
from mtst_utils.training import History, evaluate, fit, seed_everything
