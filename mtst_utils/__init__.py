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
from mtst_utils.layers import layer_stack
from mtst_utils.pooling import masked_mean
