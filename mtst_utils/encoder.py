"""From sentences to vectors: the `SentenceEncoder` around a backbone.

Taught in notebook 01.
"""

import contextlib
import copy
import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.metrics.pairwise import cosine_similarity
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtst_utils import checks, folders
from mtst_utils.backbones import is_known_by_a_short_name, load_backbone
from mtst_utils.layers import Dense
from mtst_utils.pooling import POOLINGS
from mtst_utils.precision import wants_bfloat16
from mtst_utils.threads import within_quota

# A fast tokenizer keeps the length to cut at as a state of its own, which threads would share.
_tokenizing = threading.Lock()
CHUNK = 16_384  # sentences tokenized at a time: memory stays flat however many there are


def cosine_matrix(a: ArrayLike, b: ArrayLike | None = None) -> np.ndarray:
    """Cosine similarity of every row of a with every row of b.

    a [N, H], b [M, H] (default: a itself); returns [N, M]. Raises ValueError when a or b is not a
    matrix, or their widths differ. Taught in notebook 01, section 4.
    """
    a, b = np.asarray(a), np.asarray(a if b is None else b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"cosine_matrix needs [N, H] and [M, H]; got {list(a.shape)} and {list(b.shape)}"
        )
    for name, rows in (("a", a), ("b", b)):
        finite = np.isfinite(rows).all(1) if np.issubdtype(rows.dtype, np.number) else [False]
        if not np.all(finite):
            raise ValueError(
                f"cosine_matrix needs finite numbers; row {np.argmin(finite)} of {name} holds "
                "another value"
            )
    return cosine_similarity(a, b)


class SentenceEncoder(nn.Module):
    """A backbone and everything outside it: tokenizer, maximum length, pooling, Dense, normalising.

    backbone: a transformer that returns last_hidden_state; tokenizer: its own.
    pooling: a name in `pooling.POOLINGS`, as "mean", "cls", "max"; normalize: scale every embedding
    to length 1.
    max_length: tokens a sentence is cut to, special tokens included (default: the most the model
    takes). dense: after the pooling, one after the other; most models have none.
    Raises ValueError for an unknown pooling or a max_length the model cannot take.
    Taught in notebook 01.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str = "mean",
        normalize: bool = False,
        max_length: int | None = None,
        dense: Iterable[Dense] = (),
    ) -> None:
        super().__init__()
        checks.instance("backbone", backbone, PreTrainedModel)
        checks.instance("tokenizer", tokenizer, PreTrainedTokenizerBase)
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        self.backbone, self.tokenizer = backbone, tokenizer
        self.pooling, self.normalize = str(pooling), bool(normalize)
        longest = _longest(backbone, tokenizer)
        self.max_length = longest if max_length is None else checks.plain(max_length)
        self._check_length()
        self.dense = nn.Sequential(*dense)
        _check_widths(self.dense, backbone)

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, **options: Any) -> "SentenceEncoder":
        """Load by name as `load_backbone` does, with its options (revision, token, ...).

        Pooling, maximum length, lower-casing, Dense and normalising are those that the files of
        sentence-transformers in the folder state, else the mean and the model's limit. Only of the
        models that `load_backbone` knows by a short name embeddings keep their own length
        (normalize=False): heads learn from it. Raises ValueError for a stated module, option or
        default prompt that is not applied here, by its name.
        """
        backbone, tokenizer = load_backbone(name, **options)
        stated = folders.read_settings(Path(backbone.name_or_path))
        if stated.pop("lower_case", False):
            _lower_casing(tokenizer)
        if is_known_by_a_short_name(backbone):
            stated["normalize"] = False
        if stated.get("max_length"):  # it goes before the tokenizer's own
            limit = max(tokenizer.model_max_length, stated["max_length"])
            tokenizer.model_max_length = limit
            stated["max_length"] = min(stated["max_length"], _longest(backbone, tokenizer))
        return cls(backbone, tokenizer, **stated)

    @property
    def dimension(self) -> int:
        """H, the length of an embedding: the backbone's hidden size, or what a Dense gives."""
        widths = [dense.linear.out_features for dense in self.dense]
        return widths[-1] if widths else self.backbone.config.hidden_size

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """input_ids and attention_mask [B, T] -> embeddings [B, H].

        token_type_ids, which a tokenizer gives besides, go to a backbone that takes them.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and _takes_token_types(self.backbone):
            inputs["token_type_ids"] = token_type_ids
        try:
            hidden = self.backbone(**inputs)[0]  # a tuple where the configuration says so
        except IndexError:
            _check_words(self.backbone, input_ids)
            raise
        pooled = self.dense(POOLINGS[self.pooling](hidden, attention_mask))
        return nn.functional.normalize(pooled) if self.normalize else pooled

    def tokenize(self, sentences: list[str]) -> tuple[list[list[int]], int]:
        """Strings -> (a list of token id lists, cut at max_length; how many were cut).

        Raises ValueError for a sentence without any token, which some tokenizers make of "", and
        for a max_length, set since, that the model cannot take.
        """
        self._check_length()
        with _tokenizing:
            ids = self.tokenizer(sentences, verbose=False)["input_ids"]
            long = [i for i, row in enumerate(ids) if len(row) > self.max_length]
            if long:  # a second time, so that the closing special token is kept
                cut = self.tokenizer(
                    [sentences[i] for i in long], truncation=True, max_length=self.max_length
                )["input_ids"]
                for i, row in zip(long, cut, strict=True):
                    ids[i] = row
        if [] in ids:
            raise ValueError(
                f"{sentences[ids.index([])]!r} has no token, and this tokenizer adds none at its "
                "ends: leave such sentences out"
            )
        return ids, len(long)

    def _check_length(self) -> None:
        length, longest = self.max_length, _longest(self.backbone, self.tokenizer)
        if not (isinstance(length, int) and 3 <= length <= longest):
            raise ValueError(
                f"max_length must be a whole number from 3 to {longest}, this model's limit; "
                f"got {length!r}"
            )

    def collate(
        self, ids: list[list[int]], device: str | torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """A list of token id lists -> (input_ids, attention_mask), both [B, T].

        They are padded to the longest. device: where to (default: where the backbone is).
        """
        rows = [torch.tensor(row) for row in ids]
        padding = self.tokenizer.pad_token_id  # behind the mask: any id will do where there is none
        input_ids = pad_sequence(rows, batch_first=True, padding_value=padding or 0)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        device = self.backbone.device if device is None else device
        return input_ids.to(device), mask.to(device)

    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        token_budget: int | None = None,
        precision: str = "float32",
        progress: bool = False,
    ) -> np.ndarray:
        """Embed sentences.

        One string -> float32 [H]; N strings (list, Series, ...) -> float32 [N, H]. Results come
        back in the order of the input.
        token_budget: most tokens in a batch, padding included (default: 1024, in bfloat16 2048,
        which were the quickest); it changes the speed, not the embeddings.
        precision: "float32", "bfloat16" (weights and all), or "auto" (bfloat16 where the hardware
        is quick at it).
        Raises TypeError for what is not a string, naming its position. Warns once with the number
        of sentences cut at max_length. Taught in notebook 01, section 6.
        """
        if isinstance(sentences, str):
            return self.encode([sentences], token_budget=token_budget, precision=precision)[0]
        sentences = checked_sentences(sentences)
        embeddings: np.ndarray = np.empty((len(sentences), self.dimension), np.float32)
        for rows, pooled in self.run_batches(self, sentences, precision, token_budget, progress):
            embeddings[rows] = pooled.float().cpu().numpy()
        return embeddings

    def run_batches(
        self,
        module: nn.Module,
        sentences: list[str],
        precision: str,
        token_budget: int | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[list[int], Any]]:
        """Run this encoder, or a model around it, over N sentences in eval mode, without gradients.

        Yields (positions in `sentences`, what the module returns for them). Each chunk is tokenized
        once and batched by token count, longest first, so that hardly anything is padded.
        """
        bfloat16 = wants_bfloat16(precision, self.backbone.device)
        token_budget = (2048 if bfloat16 else 1024) if token_budget is None else token_budget
        token_budget = checks.plain(token_budget)
        whole = isinstance(token_budget, int) and not isinstance(token_budget, bool)
        if not whole or token_budget < 1:
            raise ValueError(f"token_budget must be a positive whole number; got {token_budget!r}")
        # The backbone's weights once: autocast would convert them anew for every batch.
        backbone = self.backbone.parameters() if bfloat16 else ()
        own = {id(p): p.detach().bfloat16() for p in backbone}
        view = _view_for_predicting(module, own, {})
        cut = 0
        bar = tqdm(total=len(sentences), desc="encode", unit="sentence", disable=not progress)
        with bar:
            for start in range(0, len(sentences), CHUNK):
                ids, chunk_cut = self.tokenize(sentences[start : start + CHUNK])
                cut += chunk_cut
                for batch in batches_by_tokens([len(row) for row in ids], token_budget):
                    inputs = self.collate([ids[i] for i in batch])
                    # Not around the loop: whoever uses the results would be in these modes, too.
                    with torch.inference_mode(), within_quota():
                        output = view(*inputs)
                    yield [start + i for i in batch], output
                    bar.update(len(batch))
        warn_of_cuts(cut, len(sentences), self.max_length)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` opens.

        `sentence_transformers.SentenceTransformer` opens it, too.
        LoRA adapters (`backbone.add_adapter`, peft) are written merged into the weights.
        """
        folder = Path(folder).expanduser()
        others = [
            name for name in self.state_dict() if not name.startswith(("backbone.", "dense."))
        ]
        if others:
            checks.warn(
                f"{others} are not written: a folder holds only what sentence-transformers knows"
            )
        _merged(self.backbone).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        options = self.pooling, self.dense, self.normalize, self.max_length
        width = self.backbone.config.hidden_size
        folders.write_settings(folder, *options, _lowers_first(self.tokenizer), width)


def _merged(backbone: PreTrainedModel) -> PreTrainedModel:
    """The backbone; under LoRA (peft) a copy whose weights hold what its adapters have learned."""
    if not any(hasattr(part, "get_base_layer") for part in backbone.modules()):
        return backbone
    merged = copy.deepcopy(backbone)
    for name, part in reversed(list(merged.named_modules())):
        if hasattr(part, "get_base_layer"):
            if not part.disable_adapters:
                part.merge()
            parent, _, own_name = name.rpartition(".")
            setattr(merged.get_submodule(parent), own_name, part.get_base_layer())
        elif hasattr(part, "modules_to_save"):
            parent, _, own_name = name.rpartition(".")
            trained = part.modules_to_save[part.active_adapters[0]]
            now = part.original_module if part.disable_adapters else trained
            setattr(merged.get_submodule(parent), own_name, now)
    merged.delete_adapter(list(merged.peft_config))
    return merged


def _check_widths(dense: nn.Sequential, backbone: PreTrainedModel) -> None:
    """Raises TypeError or ValueError for what cannot stand after the pooling, each in its place."""
    width = backbone.config.hidden_size if len(dense) else 0
    for i, part in enumerate(dense):
        checks.instance(f"dense[{i}]", part, Dense)
        if part.linear.in_features != width:
            raise ValueError(
                f"dense[{i}] takes vectors of {part.linear.in_features} numbers; it gets {width}"
            )
        width = part.linear.out_features


def _longest(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens a sentence may have."""
    positions = getattr(backbone.config, "max_position_embeddings", None) or int(1e9)
    # RoBERTa, MPNet and all that are built like them number positions from padding_idx + 1 on:
    # their table holds that many fewer.
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if (padding := getattr(table, "padding_idx", None)) is not None:
        positions -= padding + 1
    return min(tokenizer.model_max_length or positions, positions)


def _check_words(backbone: PreTrainedModel, input_ids: Tensor) -> None:
    """Raises ValueError for a token that the backbone has no vector for."""
    rows, largest = len(backbone.get_input_embeddings().weight), int(input_ids.max())
    if largest >= rows:
        raise ValueError(
            f"token {largest} is none of the {rows} that the backbone has a vector for; after "
            "tokenizer.add_tokens(...) call backbone.resize_token_embeddings(len(tokenizer))"
        )


def _view_for_predicting(
    module: nn.Module, weights: Mapping[int, Tensor], views: dict[int, nn.Module]
) -> nn.Module:
    """A view of a module in eval mode, with these weights (by the id of those they stand for).

    The module itself is not touched: another thread may be using it. views: those made so far.
    """
    if id(module) not in views:
        view = views[id(module)] = copy.copy(module)
        # By __dict__: a task may have any name, "_modules" too.
        own = view.__dict__
        own["training"] = False
        own["_parameters"] = {name: weights.get(id(p), p) for name, p in module._parameters.items()}
        own["_modules"] = {
            name: part if part is None else _view_for_predicting(part, weights, views)
            for name, part in module._modules.items()
        }
        # transformers collects hidden states by hooks, which it adds once to each model it meets.
        own["_forward_hooks"] = module._forward_hooks.copy()
        own["_forward_pre_hooks"] = module._forward_pre_hooks.copy()
    return views[id(module)]


def _takes_token_types(backbone: PreTrainedModel) -> bool:
    return "token_type_ids" in inspect.signature(backbone.forward).parameters


def _lower_casing(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer lower the case before anything else, as sentence-transformers does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"do_lower_case is not applied to a {type(tokenizer).__name__}")
    if not _lowers_first(tokenizer):
        before = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def _lowers_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does it lower the case first? BERT's tokenizer does not save that: the folder states it."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if not isinstance(normalizer, normalizers.Sequence) or len(normalizer) == 0:
        return False
    return isinstance(normalizer[0], normalizers.Lowercase)


def checked_sentences(sentences: Iterable[str], name: str = "sentences") -> list[str]:
    """The sentences as a list of strings: the one door that all of them go through.

    Taken is what has an order: a list, a tuple, an array, a Series, a generator. Raises TypeError
    for other containers and for the first element that is no string, ValueError for the first that
    holds half a character, each with its position.
    """
    if hasattr(sentences, "columns"):
        raise TypeError(f"{name} must be one column, as frame['text']; got a frame")
    refused = (str, bytes, bytearray, Mapping, Set, type)
    no_sequence = not hasattr(sentences, "__iter__") or getattr(sentences, "ndim", 1) == 0
    if isinstance(sentences, refused) or no_sequence or hasattr(sentences, "read"):  # a file
        raise TypeError(f"{name} must be a list of strings; got {type(sentences).__name__}")
    sentences = list(sentences)
    for i, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise TypeError(
                f"{name}[{i}] must be a string; got {sentence!r:.60} of type "
                f"{type(sentence).__name__}"
            )
        if not sentence.isascii():
            _check_whole(sentence, f"{name}[{i}]")
    return sentences


def _check_whole(sentence: str, place: str) -> None:
    """Raises ValueError for half an emoji, as is left where a text is cut by UTF-16 units."""
    try:
        sentence.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} holds half a character, {sentence[error.start]!a}, at its position "
            f"{error.start}; text.encode(errors='ignore').decode() leaves it out"
        ) from error


def batches_by_tokens(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Cut positions 0..N-1 into lists of like length, longest first.

    Each is within the budget when padded (or alone).
    """
    batch: list[int] = []
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > token_budget:
            batches.append(batch)
            batch = []
        batch.append(i)
    return batches + [batch] * bool(batch)


def warn_of_cuts(cut: int, total: int, max_length: int) -> None:
    """One warning with the number of sentences that were cut, if there are any."""
    if cut:
        checks.warn(
            f"{cut} of {total} sentences are longer than max_length={max_length} tokens and were "
            "cut there"
        )


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode for a while, then give each of its parts back the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
