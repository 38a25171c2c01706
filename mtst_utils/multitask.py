"""One shared encoder, one linear head per task.

Taught in notebook 02.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from pandas.api.types import is_hashable
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers.utils import ModelOutput

from mtst_utils import checks
from mtst_utils.encoder import SentenceEncoder, checked_sentences
from mtst_utils.fast_cpu import QuickDropout
from mtst_utils.frames import NO_LABEL, is_missing

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Task:
    """A classification task: its name, its labels in a fixed order, its weight in the total loss.

    A task owns whatever depends on its kind: the size of its head (`outputs`), how labels become a
    tensor (`encode`), the loss, what the head's output means (`probabilities`, `decode`) and the
    scores. Another kind is a subclass; `MultiLabelTask` and `RegressionTask` are two.

    Raises ValueError for a name that cannot name a head, for fewer than two labels, for a label
    that is there twice, and for a weight that is not a positive number.
    Taught in notebook 02, section 1.
    """

    name: str
    labels: tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        # A string would be taken for its letters.
        checks.instance("labels", self.labels, (tuple, list))
        object.__setattr__(self, "labels", tuple(map(checks.plain, self.labels)))
        object.__setattr__(self, "name", checks.plain(self.name))
        if not isinstance(self.name, str) or self.name in ("", "text") or "." in self.name:
            raise ValueError(
                "Task: name must be a string, not empty, without a dot, and not 'text', which is "
                f"the column of the sentences; got {self.name!r}"
            )
        if self.name.encode(errors="ignore").decode() != self.name:  # no file could hold it
            raise ValueError(f"Task: name holds half a character; got {self.name!a}")
        self._check_options()
        name, above = f"Task {self.name!r}: weight", "above 0"
        weight = checks.number(name, self.weight, above, lambda v: 0 < v <= LARGEST)
        object.__setattr__(self, "weight", weight)
        try:
            json.dumps(asdict(self))  # now, and not when the trained model is saved
        except TypeError as error:
            raise TypeError(
                f"Task {self.name!r}: a JSON file must be able to hold its settings, as it can "
                f"numbers, strings and tuples of them ({error})"
            ) from error

    def _check_options(self) -> None:
        name, labels = self.name, self.labels
        if any(is_missing(label) for label in labels):
            raise ValueError(
                f"Task {name!r}: None and NaN mean that a sentence has no label; got {labels!r}"
            )
        if not all(isinstance(label, (str, int, float)) for label in labels):  # as a file holds it
            raise ValueError(f"Task {name!r}: labels must be strings or numbers; got {labels!r}")
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError(
                f"Task {name!r}: labels must be two or more, each once; got {labels!r}"
            )

    @property
    def outputs(self) -> int:
        """K, how many numbers the head gives."""
        return len(self.labels)

    def encode(self, labels: Iterable) -> Tensor:
        """Labels [N] -> LongTensor [N]; None or NaN (no label) -> -100.

        Raises ValueError that names position and value of an unknown one.
        """
        known = {label: i for i, label in enumerate(self.labels)}
        codes = []
        for i, label in enumerate(labels):
            if not is_missing(label) and not (is_hashable(label) and label in known):
                raise ValueError(
                    f"task {self.name!r}, row {i}: {label!r} is not one of its labels {self.labels}"
                )
            codes.append(NO_LABEL if is_missing(label) else known[label])
        return torch.tensor(codes, dtype=torch.long)

    def labelled(self, truth: Tensor) -> Tensor:
        """What `encode` gave [N] -> booleans [N]: has this sentence a label?"""
        return truth != NO_LABEL

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy of logits [B, K] and truth [B]: a scalar, 0 if no sentence has a label."""
        total = cross_entropy(logits, truth, ignore_index=NO_LABEL, reduction="sum")
        # Divided by the number of labelled sentences, or by 1 if there is none: 0, not 0 / 0.
        return total / self.labelled(truth).sum().clamp(min=1)

    def check_truth(self, truth: object, n: int) -> None:
        """Raises ValueError for labels of a batch of n sentences that `loss` cannot take."""
        if not isinstance(truth, Tensor) or truth.dtype != torch.long or truth.shape != (n,):
            raise ValueError(
                f"labels of task {self.name!r} must be a LongTensor [{n}], one a sentence; "
                f"got {_described(truth)}"
            )
        for i, value in enumerate(truth.tolist()):
            if not (0 <= value < self.outputs or value == NO_LABEL):
                raise ValueError(
                    f"labels of task {self.name!r} must be from 0 to {self.outputs - 1}, "
                    f"or {NO_LABEL} for none; got {value} at position {i}"
                )

    def probabilities(self, logits: Tensor) -> Tensor:
        """The head's output [N, K] -> what it says, in [N, K]: here a probability per label."""
        return logits.softmax(-1)

    def decode(self, probabilities: np.ndarray) -> dict[str, list | np.ndarray]:
        """Probabilities [N, K] -> the columns of `predict`: likeliest label, its probability."""
        best = [self.labels[i] for i in probabilities.argmax(1)]
        return {self.name: best, f"{self.name} probability": probabilities.max(1)}

    def scores(self, truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
        """Accuracy and macro F1 over sentences that have a label; NaN where there is none.

        Macro F1 is the unweighted mean over *all* labels: one that is never seen nor said counts 0.
        """
        if len(truth) == 0:
            return {"accuracy": math.nan, "macro F1": math.nan}
        said = probabilities.argmax(1)
        f1 = f1_score(truth, said, labels=range(self.outputs), average="macro", zero_division=0)
        return {"accuracy": float((said == truth).mean()), "macro F1": float(f1)}


@dataclass(frozen=True)
class MultiLabelTask(Task):
    """Any number of labels a sentence: a column of tuples (or lists) of labels, None for not known.

    Loss: binary cross-entropy, averaged over labels. `accuracy` is the share of exact matches.
    """

    def encode(self, labels: Iterable) -> Tensor:
        """Tuples of labels [N] -> float32 [N, K] of 0 and 1; a row of NaN where there are none."""
        rows = torch.zeros(len(labels := list(labels)), self.outputs)
        for i, said in enumerate(labels):
            if is_missing(said):
                rows[i] = torch.nan
                continue
            several = isinstance(said, (tuple, list, set, frozenset, np.ndarray))
            several = several and getattr(said, "ndim", 1) == 1
            if not several or not all(is_hashable(v) and v in self.labels for v in said):
                raise ValueError(
                    f"task {self.name!r}, row {i}: must be a tuple of labels from {self.labels}; "
                    f"got {said!r}"
                )
            rows[i, [self.labels.index(label) for label in said]] = 1
        return rows

    def labelled(self, truth: Tensor) -> Tensor:
        return ~truth.isnan().any(-1)

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        known = self.labelled(truth)
        total = binary_cross_entropy_with_logits(logits[known], truth[known], reduction="sum")
        return total / (known.sum().clamp(min=1) * self.outputs)

    def check_truth(self, truth: object, n: int) -> None:
        _check_floats(self.name, truth, (n, self.outputs))

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def decode(self, probabilities: np.ndarray) -> dict[str, list | np.ndarray]:
        said = [
            tuple(label for label, p in zip(self.labels, row, strict=True) if p > 0.5)
            for row in probabilities
        ]
        return {self.name: said}

    def scores(self, truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
        if len(truth) == 0:
            return {"accuracy": math.nan, "macro F1": math.nan}
        said = probabilities > 0.5
        f1 = f1_score(truth.astype(bool), said, average="macro", zero_division=0)
        return {"accuracy": float((said == truth).all(1).mean()), "macro F1": float(f1)}


@dataclass(frozen=True)
class RegressionTask(Task):
    """A number a sentence; None or NaN for not known. Loss: the mean squared error.

    Numbers of about unit spread train best beside the losses of other tasks, or take a weight.
    """

    labels: tuple[str, ...] = field(default=(), init=False)

    def _check_options(self) -> None:
        pass

    @property
    def outputs(self) -> int:
        return 1

    def encode(self, labels: Iterable) -> Tensor:
        """Numbers [N] -> float32 [N], NaN where there is none."""
        numbers = []
        for i, value in enumerate(labels):
            try:
                numbers.append(math.nan if is_missing(value) else float(value))
                if not is_missing(value) and not abs(numbers[-1]) <= LARGEST:  # NaN, too
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                raise ValueError(
                    f"task {self.name!r}, row {i}: must be a finite number; got {value!r:.60}"
                ) from None
        return torch.tensor(numbers, dtype=torch.float32)

    def labelled(self, truth: Tensor) -> Tensor:
        return ~truth.isnan()

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        known = self.labelled(truth)
        total = mse_loss(logits[:, 0][known], truth[known], reduction="sum")
        return total / known.sum().clamp(min=1)

    def check_truth(self, truth: object, n: int) -> None:
        _check_floats(self.name, truth, (n,))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The predicted numbers themselves, [N, 1]."""
        return logits

    def decode(self, probabilities: np.ndarray) -> dict[str, list | np.ndarray]:
        return {self.name: probabilities[:, 0]}

    def scores(self, truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
        """Mean absolute error, in the labels' unit, and Pearson's r; NaN if it has no meaning."""
        said = probabilities[:, 0]
        error = float(np.abs(said - truth).mean()) if len(truth) else math.nan
        varies = len(truth) and np.ptp(truth) > 0 and np.ptp(said) > 0
        r = float(np.corrcoef(said, truth)[0, 1]) if varies else math.nan
        return {"mean absolute error": error, "r": r}


KINDS = {kind.__name__: kind for kind in (Task, MultiLabelTask, RegressionTask)}


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.60}"


def _check_floats(name: str, truth: object, shape: tuple[int, ...]) -> None:
    right = isinstance(truth, Tensor) and truth.is_floating_point() and truth.shape == shape
    if not right:
        raise ValueError(
            f"labels of task {name!r} must be a float tensor {list(shape)}; got {_described(truth)}"
        )


@dataclass
class MultiTaskOutput(ModelOutput):
    """What `MultiTaskModel` returns.

    loss: the weighted sum (None without labels); losses: {task: scalar};
    logits: {task: [B, K]}; embeddings: [B, H].
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: dict[str, Tensor] | None = None
    embeddings: Tensor | None = None


class Heads(nn.ModuleDict):
    """A ModuleDict that takes every name: its own has no place for a task called type or keys."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        self._modules[name] = module

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":  # the flag of every module, also beside a task of this name
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class MultiTaskModel(nn.Module, ModelHubMixin):
    """A SentenceEncoder whose embedding feeds one linear head per task.

    Hard parameter sharing (Caruana 1997). encoder: a SentenceEncoder; tasks: a list of Task;
    dropout: on the embedding, before the heads, in training.
    Raises TypeError or ValueError for no tasks, two of one name, or a dropout outside [0, 1).
    Taught in notebook 02, section 1.
    """

    def __init__(
        self, encoder: SentenceEncoder, tasks: Iterable[Task], dropout: float = 0.1
    ) -> None:
        super().__init__()
        checks.instance("encoder", encoder, SentenceEncoder)
        tasks = checks.items("tasks", tasks)
        if not tasks or not all(isinstance(task, Task) for task in tasks):
            raise TypeError(f"tasks must be a list of at least one Task; got {tasks!r}")
        if len({task.name for task in tasks}) < len(tasks):
            names = [task.name for task in tasks]
            raise ValueError(f"tasks must have different names; got {names}")
        for task in tasks:
            if any(f"{task.name} probability" == other.name for other in tasks):
                raise ValueError(
                    f"tasks: {task.name + ' probability'!r} is a column that predict gives for "
                    f"task {task.name!r}; rename one of them"
                )
        dropout = checks.fraction("dropout", dropout)
        self.encoder, self.tasks = encoder, {task.name: task for task in tasks}
        self.dropout = QuickDropout(dropout)
        self.heads = Heads(
            {task.name: nn.Linear(encoder.dimension, task.outputs) for task in tasks}
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Mapping[str, Tensor] | None = None,
        token_type_ids: Tensor | None = None,
    ) -> MultiTaskOutput:
        """input_ids, attention_mask [B, T]; labels {task: what `encode` gives} -> MultiTaskOutput.

        token_type_ids go to the encoder. A label of -100 means that the sentence has none for that
        task: it counts for nothing there.
        A task that has no label in the batch has loss 0. Raises ValueError for an unknown task.
        """
        # Only if given: an encoder of one's own need not know them.
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        embeddings = self.encoder(input_ids, attention_mask, **types)
        logits = self.logits(self.dropout(embeddings))
        if labels is None:
            return MultiTaskOutput(logits=logits, embeddings=embeddings)
        losses = self._losses(logits, labels, len(embeddings))
        return MultiTaskOutput(self.total_loss(losses), losses, logits, embeddings)

    def logits(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Embeddings [B, H] -> {task: [B, K]}.

        Every training step and every prediction goes here.
        """
        # Heads are small: in bfloat16 they would lose digits, and save nothing.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(next(self.heads.parameters()).dtype)
            return {name: head(embeddings) for name, head in self.heads.items()}

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """{task: scalar} -> their weighted sum. The one place to change how tasks are combined.

        Parts of a batch, and processes, add up to the same if it is linear, a constant aside. A
        loss that is no task's, which a forward has added, has the weight 1.
        """
        weights = {name: task.weight for name, task in self.tasks.items()}
        weighted = (weights.get(name, 1) * value for name, value in losses.items())
        return torch.as_tensor(sum(weighted))  # a tensor, also where there are no losses

    def _losses(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], n: int
    ) -> dict[str, Tensor]:
        checks.instance("labels", labels, dict)
        unknown = set(labels) - set(self.tasks)
        if unknown:
            raise ValueError(
                f"labels of unknown tasks {sorted(unknown)}; this model has {list(self.tasks)}"
            )
        try:
            return {name: self.tasks[name].loss(logits[name], t) for name, t in labels.items()}
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
            for name, truth in labels.items():  # looked at only now: it costs nothing before
                self.tasks[name].check_truth(truth, n)
            raise

    def collate(self, examples: list[Mapping]) -> dict:
        """[{"input_ids": [...], "labels": {task: int}}] -> forward's arguments.

        Hugging Face Trainer's data_collator. A task that a row does not name has no label there.
        """
        # On the CPU: Trainer pins this memory, and moves it to the device itself.
        input_ids, mask = self.encoder.collate([row["input_ids"] for row in examples], device="cpu")
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        given = [row.get("labels") or {} for row in examples]
        names = list(dict.fromkeys(name for row in given for name in row))
        if not names:
            return inputs
        none = {name: task.encode([None])[0].tolist() for name, task in self.tasks.items()}
        return inputs | {
            "labels": {n: torch.tensor([row.get(n, none.get(n)) for row in given]) for n in names}
        }

    def probabilities(
        self, sentences: Iterable[str], precision: str = "auto"
    ) -> dict[str, np.ndarray]:
        """N sentences -> {task name: float32 array [N, K]}.

        From one pass of `forward` for all tasks.
        """
        sentences = checked_sentences(sentences)
        found: dict[str, np.ndarray] = {
            name: np.empty((len(sentences), task.outputs), np.float32)
            for name, task in self.tasks.items()
        }
        for rows, output in self.encoder.run_batches(self, sentences, precision):
            for name, logits in output.logits.items():
                found[name][rows] = self.tasks[name].probabilities(logits.float()).cpu().numpy()
        return found

    def predict(self, sentences: str | Iterable[str]) -> pd.DataFrame:
        """N sentences -> a frame of N rows: text, and per task its label and its probability.

        A regression task gives its number, a multi-label task the tuple of its labels.
        """
        sentences = checked_sentences([sentences] if isinstance(sentences, str) else sentences)
        table: dict[str, list | np.ndarray] = {"text": sentences}
        for name, probabilities in self.probabilities(sentences).items():
            table |= self.tasks[name].decode(probabilities)
        return pd.DataFrame(table)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
    ) -> "MultiTaskModel":
        """A saved model, from a folder or from the hub by name. ValueError for what is neither.

        The options are huggingface_hub's; subfolder: where in the repository or folder it is.
        """
        checks.instance("name", pretrained_model_name_or_path, (str, os.PathLike))
        name = os.path.expanduser(pretrained_model_name_or_path)
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        hub |= {"local_files_only": local_files_only, "force_download": force_download}
        try:
            folder = Path(name if Path(name).is_dir() else snapshot_download(name, **hub))
        except (HFValidationError, OSError) as error:
            raise ValueError(
                f"{name} is no folder here, and was not had from the hub ({error})"
            ) from error
        folder /= subfolder
        if not (folder / "tasks.json").is_file():
            raise ValueError(f"{folder} holds no multi-task model: tasks.json is not there")
        encoder = SentenceEncoder.from_pretrained(folder)
        try:
            settings = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
            tasks = [_task_of(row) for row in settings["tasks"]]
            model = cls(encoder, tasks, settings["dropout"])
            state = load_file(folder / "heads.safetensors")
            names = {name: name[1:] if name[0] == "." else f"heads.{name}" for name in state}
            model.load_state_dict({names[k]: v for k, v in state.items()}, strict=False)
        except Exception as error:  # one not there, damaged, of other sizes: many kinds
            raise ValueError(
                f"{folder}: tasks.json and heads.safetensors cannot be loaded "
                f"({type(error).__name__}: {error})"
            ) from error
        differing = sorted(set(state) ^ set(model._outside_the_encoder()))
        if differing:
            raise ValueError(
                f"{folder} holds other heads or parameters than a {cls.__name__} has "
                f"({', '.join(differing[:3])}): open it with the class that it was saved from"
            )
        return model.eval()

    def _outside_the_encoder(self) -> dict[str, Tensor]:
        """Heads by their task, and what a subclass has besides, with a dot in front."""
        return {
            name.removeprefix("heads.") if name.startswith("heads.") else f".{name}": tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("encoder.")
        }

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder that `from_pretrained` opens; options: ModelHubMixin's."""
        return super().save_pretrained(Path(save_directory).expanduser(), **options)

    # ModelHubMixin's save_pretrained and push_to_hub call it.
    def _save_pretrained(self, save_directory: Path) -> None:
        folder = Path(save_directory)
        self.encoder.save_pretrained(folder)  # so that sentence-transformers opens the folder, too
        # Each with memory of its own, as safetensors wants it: two tasks may share a head.
        heads = {name: t.contiguous().clone() for name, t in self._outside_the_encoder().items()}
        save_file(heads, folder / "heads.safetensors")
        tasks = [{"kind": type(task).__name__, **asdict(task)} for task in self.tasks.values()]
        for task, row in zip(self.tasks.values(), tasks, strict=True):
            if left := vars(task).keys() - row.keys():
                checks.warn(
                    f"task {task.name!r}: {', '.join(sorted(left))} is not saved, since "
                    f"{type(task).__name__} does not declare it as a field of a dataclass"
                )
        settings = {"tasks": tasks, "dropout": self.dropout.p}
        (folder / "tasks.json").write_text(json.dumps(settings, indent=2) + "\n")


def _task_of(row: dict) -> Task:
    """A task as tasks.json describes it."""
    options = dict(row)
    kind = options.pop("kind", "Task")
    if kind not in KINDS:
        raise ValueError(
            f"task {row['name']!r} is of kind {kind!r}; known are {', '.join(KINDS)}. "
            "Add a kind of your own to mtst_utils.multitask.KINDS before loading"
        )
    taken = {option.name for option in fields(KINDS[kind]) if option.init}
    return KINDS[kind](**{name: value for name, value in options.items() if name in taken})
