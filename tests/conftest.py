"""Tiny random backbones of several architectures, and the real default one."""

import gc

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import mtst_utils as mtst

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "pad_token_id": 0,
    "max_position_embeddings": 48,
}
CONFIGS = {
    "bert": BertConfig(**SIZE),
    "roberta": RobertaConfig(**SIZE),
    "mpnet": MPNetConfig(**SIZE),
    "electra": ElectraConfig(**SIZE, embedding_size=16),
    "albert": AlbertConfig(**SIZE, embedding_size=16, num_hidden_groups=3),
    "distilbert": DistilBertConfig(
        dim=32,
        n_layers=3,
        n_heads=2,
        hidden_dim=64,
        vocab_size=64,
        pad_token_id=0,
        max_position_embeddings=48,
    ),
    "deberta-v2": DebertaV2Config(
        **SIZE,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
    ),
    "modernbert": ModernBertConfig(
        **SIZE, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
    ),
}


def tiny_tokenizer(limit=40):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"the cat sat on a mat nobody expected train to be late today".split(),
    ]
    words += list("abcdefghijklmnopqrstuvwxyz"[1:]) + ["##" + letter for letter in "aeiou"]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.Lowercase(),
        pre_tokenizers.Whitespace(),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=limit,
    )


def tiny_backbone(kind="bert"):
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIGS[kind]).eval()


@pytest.fixture(params=CONFIGS)
def any_encoder(request):
    return mtst.SentenceEncoder(tiny_backbone(request.param), tiny_tokenizer())


@pytest.fixture
def tiny_encoder():
    return mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer())


@pytest.fixture(scope="session")
def encoder():
    """The default backbone, the real one. Tests must not change it."""
    return mtst.SentenceEncoder.from_pretrained()


@pytest.fixture
def float32(monkeypatch):
    """As on a processor without bfloat16: "auto" is float32, for numbers that are compared."""
    monkeypatch.setattr("mtst_utils.precision.has_quick_bfloat16", lambda device: False)


@pytest.fixture(scope="session")
def corpus():
    return mtst.load_rated_sentences()


def pytest_collection_finish():
    # 680,000 objects of the modules imported by now: a collection that looks through them all takes
    # .3 s and more, and every run of a study begins with one.
    gc.freeze()
