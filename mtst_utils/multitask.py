"""One shared encoder, one linear head per task.

Taught in notebook 02.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.utils import ModelOutput

from mtst_utils import checks
from mtst_utils.encoder import SentenceEncoder, checked_sentences, eval_mode

NO_LABEL = -100


@dataclass(frozen=True)
class Task:
    """A classification task: its name, its labels in a fixed order, and its weight in the total loss.

    Raises ValueError for a name that cannot name a head, for fewer than two labels, for a label that is there twice,
    and for a weight that is not a positive number. Taught in notebook 02, section 2.
    """

    name: str
    labels: tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self):
        checks.instance("labels", self.labels, (tuple, list))  # a string would be taken for its letters
        object.__setattr__(self, "labels", tuple(self.labels))
        if not isinstance(self.name, str) or not self.name or "." in self.name:
            raise ValueError(f"Task: name must be a string, not empty, without a dot; got {self.name!r}")
        if any(label is None or label != label for label in self.labels):
            raise ValueError(f"Task {self.name!r}: None and NaN mean that a sentence has no label; got {self.labels!r}")
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"Task {self.name!r}: labels must be two or more, each once; got {self.labels!r}")
        checks.number(f"Task {self.name!r}: weight", self.weight, "above 0", lambda v: 0 < v < float("inf"))

    def encode(self, labels):
        """Labels [N] -> LongTensor [N]; None or NaN (no label) -> -100. ValueError names position and value otherwise."""
        known = {label: i for i, label in enumerate(self.labels)}
        codes = []
        for i, label in enumerate(labels):
            missing = label is None or label is pd.NA or label != label  # NaN is the value that differs from itself
            if not missing and label not in known:
                raise ValueError(f"task {self.name!r}, row {i}: {label!r} is not one of its labels {self.labels}")
            codes.append(NO_LABEL if missing else known[label])
        return torch.tensor(codes, dtype=torch.long)


@dataclass
class MultiTaskOutput(ModelOutput):
    """loss: the weighted sum (None without labels); losses: {task: scalar}; logits: {task: [B, K]}; embeddings [B, H]."""

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: dict[str, torch.Tensor] | None = None
    embeddings: torch.Tensor | None = None


class MultiTaskModel(nn.Module, ModelHubMixin):
    """A SentenceEncoder whose embedding feeds one linear head per task (hard parameter sharing, Caruana 1997).

    encoder: a SentenceEncoder; tasks: a list of Task; dropout: on the embedding, before the heads, in training.
    Raises TypeError or ValueError for no tasks, two of one name, or a dropout outside [0, 1).
    Taught in notebook 02, section 2.
    """

    def __init__(self, encoder, tasks, dropout=0.1):
        super().__init__()
        checks.instance("encoder", encoder, SentenceEncoder)
        tasks = list(tasks)
        if not tasks or not all(isinstance(task, Task) for task in tasks):
            raise TypeError(f"tasks must be a list of at least one Task; got {tasks!r}")
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError(f"tasks must have different names; got {[task.name for task in tasks]}")
        checks.share("dropout", dropout)
        self.encoder, self.tasks = encoder, {task.name: task for task in tasks}
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({task.name: nn.Linear(encoder.dimension, len(task.labels)) for task in tasks})

    def forward(self, input_ids, attention_mask, labels=None):
        """input_ids and attention_mask [B, T], labels {task name: LongTensor [B]} or None -> MultiTaskOutput.

        A label of -100 means that the sentence has none for that task: it counts for nothing there. A task that has no
        label in the batch has loss 0. Raises ValueError for labels of an unknown task.
        """
        embeddings = self.encoder(input_ids, attention_mask)
        shared = self.dropout(embeddings)
        with torch.autocast(
            shared.device.type, enabled=False
        ):  # heads are small: bfloat16 would cost, and save nothing
            logits = {name: head(shared.float()) for name, head in self.heads.items()}
        if labels is None:
            return MultiTaskOutput(logits=logits, embeddings=embeddings)
        checks.instance("labels", labels, dict)
        unknown = set(labels) - set(self.tasks)
        if unknown:
            raise ValueError(f"labels of unknown tasks {sorted(unknown)}; this model has {list(self.tasks)}")
        # The sum over the labelled sentences, divided by their number, or by 1 if there is none: 0, not 0 / 0.
        try:
            losses = {name: cross_entropy(logits[name], label, ignore_index=NO_LABEL, reduction="sum")
                      / (label != NO_LABEL).sum().clamp(min=1) for name, label in labels.items()}  # fmt: skip
        except (
            IndexError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:  # looked at only now: it costs nothing before
            self._check_labels(labels, len(embeddings))
            raise error
        return MultiTaskOutput(loss=self.total_loss(losses), losses=losses, logits=logits, embeddings=embeddings)

    def _check_labels(self, labels, n):
        for name, label in labels.items():
            if not isinstance(label, torch.Tensor) or label.dtype != torch.long or label.shape != (n,):
                given = f"{label.dtype} {list(label.shape)}" if isinstance(label, torch.Tensor) else f"{label!r:.60}"
                raise ValueError(f"labels of task {name!r} must be a LongTensor [{n}], one a sentence; got {given}")
            count = len(self.tasks[name].labels)
            for i, value in enumerate(label.tolist()):
                if not (0 <= value < count or value == NO_LABEL):
                    raise ValueError(f"labels of task {name!r} must be from 0 to {count - 1}, or {NO_LABEL} for none; "
                                     f"got {value} at position {i}")  # fmt: skip

    def total_loss(self, losses):
        """{task: scalar} -> their weighted sum. The one place to change for another way of combining tasks."""
        return sum(self.tasks[name].weight * value for name, value in losses.items())

    def collate(self, examples):
        """A list of {"input_ids": [...], "labels": {task: int}} -> forward's arguments; HF Trainer's data_collator."""
        input_ids, attention_mask = self.encoder.collate([example["input_ids"] for example in examples])
        labels = {name: torch.tensor([example["labels"][name] for example in examples], device=input_ids.device)
                  for name in examples[0]["labels"]}  # fmt: skip
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def probabilities(self, sentences, precision="auto"):
        """N sentences -> {task name: float32 array [N, K]}, from one pass of the encoder for all tasks."""
        embeddings = self.encoder.encode(checked_sentences(sentences), precision=precision)
        with torch.inference_mode(), eval_mode(self):
            embeddings = torch.from_numpy(embeddings).to(self.encoder.backbone.device)
            return {name: head(embeddings).softmax(-1).cpu().numpy() for name, head in self.heads.items()}

    def predict(self, sentences):
        """N sentences -> a frame of N rows: text, and per task the likeliest label and its probability."""
        sentences = checked_sentences([sentences] if isinstance(sentences, str) else sentences)
        table = {"text": sentences}
        for name, probability in self.probabilities(sentences).items():
            table[name] = [self.tasks[name].labels[i] for i in probability.argmax(1)]
            table[f"{name} probability"] = probability.max(1)
        return pd.DataFrame(table)

    @classmethod
    def from_pretrained(cls, name, **options):
        """A saved model, from a folder or from the hub by name. Raises ValueError for what is neither."""
        try:
            return super().from_pretrained(name, **options)
        except (HFValidationError, OSError) as error:
            raise ValueError(f"{name} is no folder here, and was not had from the hub ({error})") from error

    # ModelHubMixin's save_pretrained, from_pretrained and push_to_hub call these two.
    def _save_pretrained(self, save_directory):
        folder = Path(save_directory)
        self.encoder.save_pretrained(folder)  # so that sentence-transformers opens the folder, too
        save_file(
            {name: tensor.contiguous() for name, tensor in self.heads.state_dict().items()},
            folder / "heads.safetensors",
        )
        settings = {"tasks": [asdict(task) for task in self.tasks.values()], "dropout": self.dropout.p}
        (folder / "tasks.json").write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def _from_pretrained(cls, *, model_id, revision=None, **_):
        folder = Path(model_id) if Path(model_id).is_dir() else Path(snapshot_download(model_id, revision=revision))
        if not (folder / "tasks.json").is_file():
            raise ValueError(f"{folder} holds no multi-task model: tasks.json is not there")
        settings = json.loads((folder / "tasks.json").read_text())
        model = cls(
            SentenceEncoder.from_pretrained(folder), [Task(**task) for task in settings["tasks"]], settings["dropout"]
        )
        model.heads.load_state_dict(load_file(folder / "heads.safetensors"))
        return model.eval()
