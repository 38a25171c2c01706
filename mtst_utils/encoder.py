"""From sentences to vectors: the `SentenceEncoder` around a backbone.

Taught in notebook 01.
"""

import contextlib
import copy
import inspect
import io
from collections.abc import Iterable, Iterator, Mapping, Set
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.metrics.pairwise import cosine_similarity
from tokenizers import normalizers
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtst_utils import checks, folders
from mtst_utils.backbones import is_known_by_a_short_name, load_backbone
from mtst_utils.pooling import POOLINGS
from mtst_utils.precision import wants_bfloat16
from mtst_utils.threads import within_quota

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
        bad = (
            ~np.isfinite(rows).all(1) if np.issubdtype(rows.dtype, np.number) else np.ones(1, bool)
        )
        if bad.any():
            raise ValueError(
                f"cosine_matrix needs finite numbers; row {int(bad.argmax())} of {name} holds "
                "another value"
            )
    return cosine_similarity(a, b)


class SentenceEncoder(nn.Module):
    """A backbone and everything outside it: tokenizer, maximum length, pooling, normalising.

    backbone: a transformer that returns last_hidden_state; tokenizer: its own.
    pooling: "mean", "cls" or "max"; normalize: scale every embedding to length 1.
    max_length: tokens a sentence is cut to, special tokens included (default: the most the model
    takes). Raises ValueError for an unknown pooling or a max_length the model cannot take.
    Taught in notebook 01.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str = "mean",
        normalize: bool = False,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        checks.instance("backbone", backbone, PreTrainedModel)
        checks.instance("tokenizer", tokenizer, PreTrainedTokenizerBase)
        if pooling not in list(POOLINGS):
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        max_length, longest = checks.plain(max_length), _longest(backbone, tokenizer)
        if max_length is not None and not (
            isinstance(max_length, int) and 3 <= max_length <= longest
        ):
            raise ValueError(
                f"max_length must be a whole number from 3 to {longest}, this model's limit; "
                f"got {max_length!r}"
            )
        self.backbone, self.tokenizer = backbone, tokenizer
        self.pooling, self.normalize = pooling, bool(normalize)
        self.max_length = max_length or longest

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, **options: Any) -> "SentenceEncoder":
        """Load by name as `load_backbone` does, with its options (revision, token, ...).

        Pooling, maximum length, lower-casing and normalising are those that sentence-transformers'
        files in the folder state, else the mean and the model's limit. Only of the models that
        `load_backbone` knows by a short name embeddings keep their own length (normalize=False):
        heads learn from it. Raises ValueError for a stated module, option or default prompt that is
        not applied here, by its name.
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
        """H, the length of an embedding."""
        return self.backbone.config.hidden_size

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """input_ids and attention_mask [B, T] -> embeddings [B, H].

        token_type_ids, which a tokenizer gives besides, go to a backbone that takes them.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and _takes_token_types(self.backbone):
            inputs["token_type_ids"] = token_type_ids
        hidden = self.backbone(**inputs).last_hidden_state
        pooled = POOLINGS[self.pooling](hidden, attention_mask)
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def tokenize(self, sentences: list[str]) -> tuple[list[list[int]], int]:
        """Strings -> (a list of token id lists, cut at max_length; how many were cut)."""
        ids = self.tokenizer(sentences, verbose=False)["input_ids"]
        long = [i for i, row in enumerate(ids) if len(row) > self.max_length]
        if long:  # a second time, so that the closing special token is kept
            cut = self.tokenizer(
                [sentences[i] for i in long], truncation=True, max_length=self.max_length
            )["input_ids"]
            for i, row in zip(long, cut, strict=True):
                ids[i] = row
        return ids, len(long)

    def collate(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """A list of token id lists -> (input_ids, attention_mask), both [B, T].

        They are padded to the longest, and on our device.
        """
        rows = [torch.tensor(row) for row in ids]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        device = self.backbone.device
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
        has it).
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
        precision: str = "float32",
        token_budget: int | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[list[int], Any]]:
        """Run this encoder, or a model around it, over N sentences in eval mode, without gradients.

        Yields (positions in `sentences`, what the module returns for them). Each chunk is tokenized
        once and batched by token count, longest first, so that hardly anything is padded.
        """
        bfloat16 = wants_bfloat16(precision, self.backbone.device)
        token_budget = (2048 if bfloat16 else 1024) if token_budget is None else token_budget
        if not isinstance(token_budget, Integral) or token_budget < 1:
            raise ValueError(f"token_budget must be a positive whole number; got {token_budget!r}")
        # The encoder's weights once: autocast would convert them anew for every batch.
        own = {id(weight) for weight in self.parameters()} if bfloat16 else set()
        weights = {
            name: weight.detach().bfloat16()
            for name, weight in module.named_parameters()
            if id(weight) in own
        }
        cut = 0
        bar = tqdm(total=len(sentences), desc="encode", unit="sentence", disable=not progress)
        with bar:
            for start in range(0, len(sentences), CHUNK):
                ids, chunk_cut = self.tokenize(sentences[start : start + CHUNK])
                cut += chunk_cut
                for batch in batches_by_tokens([len(row) for row in ids], token_budget):
                    inputs = self.collate([ids[i] for i in batch])
                    # Not around the loop: whoever uses the results would be in these modes, too.
                    with torch.inference_mode(), eval_mode(module), within_quota():
                        output = functional_call(module, weights, inputs)
                    yield [start + i for i in batch], output
                    bar.update(len(batch))
        warn_of_cuts(cut, len(sentences), self.max_length)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` opens.

        `sentence_transformers.SentenceTransformer` opens it, too.
        LoRA adapters (`backbone.add_adapter`, peft) are written merged into the weights.
        """
        folder = Path(folder).expanduser()
        _merged(self.backbone).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        options = self.pooling, self.normalize, self.max_length
        folders.write_settings(folder, *options, _lowers_first(self.tokenizer), self.dimension)


def _merged(backbone: PreTrainedModel) -> PreTrainedModel:
    """The backbone; under LoRA (peft) a copy whose weights hold what its adapters have learned."""
    if not any(hasattr(part, "get_base_layer") for part in backbone.modules()):
        return backbone
    merged = copy.deepcopy(backbone)
    for name, part in list(merged.named_modules()):
        if hasattr(part, "get_base_layer"):
            part.merge()
            parent, _, own_name = name.rpartition(".")
            setattr(merged.get_submodule(parent), own_name, part.get_base_layer())
    merged.delete_adapter(list(merged.peft_config))
    return merged


def _longest(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens a sentence may have."""
    positions = getattr(backbone.config, "max_position_embeddings", None) or int(1e9)
    # RoBERTa and MPNet number positions from padding_idx + 1 on: their table holds that many fewer.
    if backbone.config.model_type in ("roberta", "xlm-roberta", "mpnet"):
        positions -= vars(backbone.embeddings)["padding_idx"] + 1
    return min(tokenizer.model_max_length, positions)


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
    if isinstance(sentences, pd.DataFrame) or hasattr(sentences, "columns"):
        raise TypeError(f"{name} must be one column, as frame['text']; got a frame")
    refused = (str, bytes, bytearray, Mapping, Set, io.IOBase)
    if isinstance(sentences, refused) or not hasattr(sentences, "__iter__"):
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
