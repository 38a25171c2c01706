"""SentenceEncoder: parity, invariance, bad input, saving."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_backbone, tiny_tokenizer
from sentence_transformers import SentenceTransformer
from tokenizers import normalizers

import mtst_utils as mtst
from mtst_utils.encoder import (
    _lower_casing,
    _lowers_first,
    _view_for_predicting,
    batches_by_tokens,
    eval_mode,
)
from mtst_utils.precision import _log_once

TEXTS = [
    "the cat sat on a mat",
    "",
    "late",
    "nobody expected the train to be late today",
    "a " * 30,
    "x y z",
    "!?",
]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="session")
def peer(encoder):
    return SentenceTransformer(encoder.backbone.name_or_path)


def test_same_numbers_as_sentence_transformers(encoder, peer, corpus):
    texts = [*corpus.text.sample(20, random_state=0), *TEXTS, "one two three " * 200]
    with pytest.warns(UserWarning, match="1 of 28 sentences are longer than max_length=256"):
        ours = encoder.encode(texts)
    assert np.abs(unit(ours) - peer.encode(texts)).max() < 1e-6


def test_default_is_masked_mean_of_the_last_hidden_state(encoder):
    texts = ["The cat sat.", "Nobody expected the train to be on time today."]
    batch = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = encoder.backbone(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    by_hand = mtst.masked_mean(hidden, batch["attention_mask"]).numpy()
    assert np.allclose(encoder.encode(texts), by_hand, atol=1e-6)
    assert np.abs(np.linalg.norm(by_hand, axis=1) - 1).max() > 0.5  # not normalised


def test_same_for_any_batch_order_and_neighbour(any_encoder):
    together = any_encoder.encode(TEXTS)
    alone = np.stack([any_encoder.encode(text) for text in TEXTS])
    backwards = any_encoder.encode(TEXTS[::-1])[::-1]
    small = any_encoder.encode(TEXTS, token_budget=1)
    for other in (alone, backwards, small):
        assert np.abs(unit(together) - unit(other)).max() < 1e-5
    assert together.shape == (7, 32)
    assert together.dtype == np.float32


def test_order_is_kept(encoder):
    texts = [f"sentence {'word ' * n}number {n}" for n in (9, 1, 30, 4, 0, 17)]
    together = encoder.encode(texts, token_budget=64)
    for i, text in enumerate(texts):
        assert np.allclose(together[i], encoder.encode(text), atol=1e-5), i


def test_chunks_are_joined(tiny_encoder, monkeypatch):
    whole = tiny_encoder.encode(TEXTS * 3)
    monkeypatch.setattr("mtst_utils.encoder.CHUNK", 4)
    assert np.allclose(tiny_encoder.encode(TEXTS * 3), whole, atol=1e-6)


def test_bfloat16_is_close(encoder, corpus):
    # Few: it takes long where bfloat16 is slow.
    texts = corpus.text.sample(8, random_state=1).tolist()
    cosine = (unit(encoder.encode(texts)) * unit(encoder.encode(texts, precision="bfloat16"))).sum(
        1
    )
    assert 0.9995 < cosine.min() < 1


def test_bfloat16_leaves_the_weights_what_they_are_and_holds_for_every_architecture(any_encoder):
    before = {name: weight.clone() for name, weight in any_encoder.named_parameters()}
    exact, half = any_encoder.encode(TEXTS), any_encoder.encode(TEXTS, precision="bfloat16")
    assert half.dtype == np.float32
    assert (unit(exact) * unit(half)).sum(
        1
    ).min() > 0.99  # random weights of width 32: errors do not average out
    for name, weight in any_encoder.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])
    assert np.array_equal(any_encoder.encode(TEXTS), exact)


@pytest.mark.parametrize(("hardware", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_only_where_it_is_quick_and_says_so_once(
    tiny_encoder, monkeypatch, caplog, hardware, chosen
):
    monkeypatch.setattr("mtst_utils.precision.has_quick_bfloat16", lambda device: hardware)
    _log_once.cache_clear()
    with caplog.at_level("INFO", logger="mtst_utils"):
        for _ in range(3):
            auto = tiny_encoder.encode(TEXTS, precision="auto")
    assert np.array_equal(auto, tiny_encoder.encode(TEXTS, precision=chosen))
    assert not np.array_equal(
        auto, tiny_encoder.encode(TEXTS, precision="float32" if hardware else "bfloat16")
    )
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"precision='auto' is {chosen} on this cpu")


def test_one_string_is_a_vector_and_none_is_an_empty_matrix(tiny_encoder):
    assert tiny_encoder.encode("the cat").shape == (32,)
    assert tiny_encoder.encode([]).shape == (0, 32)


def test_training_goes_through_the_encoder(tiny_encoder):
    # no_grad inside forward would leave the backbone without gradients.
    tiny_encoder(*tiny_encoder.collate([[2, 5, 3], [2, 6, 7, 3]])).sum().backward()
    assert all(p.grad is not None for n, p in tiny_encoder.named_parameters() if "pooler" not in n)


def test_encode_leaves_training_mode_as_it_was(tiny_encoder):
    tiny_encoder.train()
    tiny_encoder.backbone.encoder.layer[0].eval()  # a frozen part
    first = tiny_encoder.encode(TEXTS)
    assert np.array_equal(first, tiny_encoder.encode(TEXTS))  # no dropout
    assert tiny_encoder.training
    assert tiny_encoder.backbone.encoder.layer[1].training
    assert not tiny_encoder.backbone.encoder.layer[0].training
    with pytest.raises(KeyError), eval_mode(tiny_encoder):
        raise KeyError
    assert tiny_encoder.training


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["a", None], r"sentences\[1\] must be a string; got None of type NoneType"),
        (["a", "b", float("nan")], r"sentences\[2\] must be a string; got nan of type float"),
        ([b"a"], r"sentences\[0\] must be a string; got b'a' of type bytes"),
        ([["a"]], r"sentences\[0\]"),
        (5, "sentences must be a list of strings; got int"),
        (b"bytes", "got bytes"),
        ({"text": "a"}, "got dict"),
        (np.array("a"), "sentences must be a list of strings; got ndarray"),
    ],
)
def test_what_is_not_a_string_is_named(tiny_encoder, sentences, message):
    with pytest.raises(TypeError, match=message):
        tiny_encoder.encode(sentences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 0}, "token_budget must be a positive whole number; got 0"),
        ({"token_budget": 1.5}, "token_budget"),
        ({"precision": "int8"}, "precision must be 'float32', 'bfloat16' or 'auto'; got 'int8'"),
    ],
)
def test_bad_options(tiny_encoder, options, message):
    for sentences in (["a"], "a"):
        with pytest.raises(ValueError, match=message):
            tiny_encoder.encode(sentences, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "sum"}, "pooling must be one of mean, cls, max.*; got 'sum'"),
        ({"max_length": 41}, "from 3 to 40, this model's limit; got 41"),
        ({"max_length": 2}, "max_length"),
        ({"max_length": 10.0}, "max_length"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), **options)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "roberta"])
def test_longest_input_the_positions_allow(kind):
    # MPNet and RoBERTa keep padding_idx + 1 positions for themselves: MPNet's is always 1.
    encoder = mtst.SentenceEncoder(tiny_backbone(kind), tiny_tokenizer(limit=10**6))
    assert encoder.max_length == {"bert": 48, "mpnet": 46, "roberta": 47}[kind]
    with pytest.warns(UserWarning, match="1 of 1"):
        assert np.isfinite(encoder.encode("a " * 100)).all()


def test_truncation_keeps_the_closing_token_and_is_counted_once():
    encoder = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), max_length=8)
    ids, cut = encoder.tokenize(["a " * 20, "a b c", "b " * 7, "a " * 6])
    assert [len(row) for row in ids] == [8, 5, 8, 8]
    assert [row[-1] for row in ids] == [3] * 4
    assert cut == 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder.encode(["a " * 20, "a b c", "b " * 7, "a"])
    assert [str(w.message) for w in caught] == [
        "2 of 4 sentences are longer than max_length=8 tokens and were cut there"
    ]


def test_a_length_set_later_is_checked_too():
    """It went on to the backbone, which failed inside its table of positions."""
    encoder = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer())
    encoder.max_length = 512
    with pytest.raises(ValueError, match="from 3 to 40, this model's limit; got 512"):
        encoder.encode(["a " * 100])


def test_the_shortest_length_leaves_one_word():
    shortest = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), max_length=3)
    assert shortest.tokenize(["the cat sat"]) == ([[2, 4, 3]], 1)


def test_transformers_does_not_warn_of_long_sentences_as_well(tiny_encoder, monkeypatch):
    said = []
    logger = transformers.tokenization_utils_base.logger
    monkeypatch.setattr(logger, "warning", lambda *message, **_: said.append(message))
    tiny_encoder.tokenize(["a " * 60])
    assert said == []


def test_padding_is_the_tokenizers_own():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "[UNK]"
    ids, mask = mtst.SentenceEncoder(tiny_backbone(), tokenizer).collate([[2, 5, 3], [2, 3]])
    assert ids.tolist() == [[2, 5, 3], [2, 3, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_backbone_that_states_no_positions_takes_what_its_tokenizer_takes():
    backbone = tiny_backbone()
    backbone.config = copy.deepcopy(backbone.config)  # other tests have the same one
    backbone.config.max_position_embeddings = 0
    assert mtst.SentenceEncoder(backbone, tiny_tokenizer()).max_length == 40


def test_a_part_that_was_taken_out_stays_out(tiny_encoder):
    expected = tiny_encoder.encode(TEXTS)
    tiny_encoder.backbone.pooler = None
    assert np.array_equal(tiny_encoder.encode(TEXTS), expected)


def test_hooks_of_a_view_are_its_own(tiny_encoder):
    view = _view_for_predicting(tiny_encoder, {}, {})
    view.register_forward_hook(print)
    view.register_forward_pre_hook(print)
    assert not tiny_encoder._forward_hooks
    assert not tiny_encoder._forward_pre_hooks


# on its own: mutation testing puts frames of its own between
def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="1 of 1 sentences") as caught:
        mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), max_length=8).encode(["a " * 20])
    assert caught[0].filename == __file__


def test_batches_by_tokens():
    lengths = [5, 1, 9, 3, 3, 2, 40]
    batches = batches_by_tokens(lengths, 12)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [6]  # longer than the budget: alone
    assert all(len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches[1:])
    assert batches_by_tokens([], 12) == []
    assert batches_by_tokens([3, 3, 3, 3], 6) == [[0, 1], [2, 3]]  # just within


@pytest.mark.parametrize(
    "settings", [{}, {"pooling": "cls", "normalize": True, "max_length": 12}, {"pooling": "max"}]
)
def test_saved_folder_opens_here_and_in_sentence_transformers(tmp_path, settings):
    encoder = mtst.SentenceEncoder(tiny_backbone("mpnet"), tiny_tokenizer(), **settings)
    texts = ["the cat sat", "nobody expected", "late"]
    encoder.save_pretrained(tmp_path / "saved")
    again = mtst.SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert (again.pooling, again.normalize, again.max_length) == (
        encoder.pooling,
        encoder.normalize,
        encoder.max_length,
    )
    assert np.array_equal(again.encode(texts), encoder.encode(texts))
    peer = SentenceTransformer(str(tmp_path / "saved"))
    assert np.abs(peer.encode(texts) - encoder.encode(texts)).max() < 1e-5
    assert peer.max_seq_length == encoder.max_length


def test_what_no_folder_can_hold_is_told(tmp_path, tiny_encoder):
    tiny_encoder.own = torch.nn.Linear(2, 2)
    with pytest.warns(UserWarning, match=r"\['own.weight', 'own.bias'\] are not written"):
        tiny_encoder.save_pretrained(tmp_path)


def test_a_folder_that_states_nothing_keeps_its_case(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(tmp_path)
    tiny_backbone().save_pretrained(tmp_path)
    opened = mtst.SentenceEncoder.from_pretrained(tmp_path)
    assert opened.tokenize(["The cat"])[0] == [[2, 1, 5, 3]]  # no word begins with a capital


@pytest.mark.parametrize("before", [None, normalizers.Replace("hat", "cat")])
def test_lower_casing_comes_before_what_the_tokenizer_does(before):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = before
    assert not _lowers_first(tokenizer)
    _lower_casing(tokenizer)
    assert _lowers_first(tokenizer)
    assert tokenizer("CAT" if before is None else "HAT")["input_ids"] == [2, 5, 3]


def test_a_tokenizer_that_cannot_lower_the_case_is_refused():
    assert not _lowers_first(object())
    with pytest.raises(ValueError, match="do_lower_case is not applied to a object"):
        _lower_casing(object())


def test_settings_of_a_foreign_folder_are_honoured(tmp_path):
    encoder = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), pooling="cls", max_length=9)
    encoder.save_pretrained(tmp_path)
    again = mtst.SentenceEncoder.from_pretrained(tmp_path)
    assert (again.pooling, again.max_length) == ("cls", 9)
    config = tmp_path / "1_Pooling/config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"pooling_mode_max_tokens": True})
    )
    with pytest.raises(ValueError, match="Pooling by cls and max .known are mean, cls, max"):
        mtst.SentenceEncoder.from_pretrained(tmp_path)


def test_cosine_matrix():
    a, b = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 2.0]])
    assert np.allclose(mtst.cosine_matrix(a), [[1, 0.6], [0.6, 1]])
    assert np.allclose(mtst.cosine_matrix(a, b), [[0], [0.8]])
    assert np.allclose(mtst.cosine_matrix(torch.tensor(a), torch.tensor(b)), [[0], [0.8]])
    with pytest.raises(ValueError, match=r"\[2, 2\] and \[1, 3\]"):
        mtst.cosine_matrix(a, np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"\[2\]"):
        mtst.cosine_matrix(a[0])
