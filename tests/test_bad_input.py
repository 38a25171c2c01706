"""Bad input at every public function: an error of a standard kind, raised by our own code, that
names what was wrong.
"""

import functools
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
import torch
from conftest import tiny_backbone, tiny_tokenizer
from torch import nn

import mtst_utils as mtst

NAN, IDS, MASK = float("nan"), torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.long)
TOKENS = torch.zeros(2, 3, 4)
TASK = mtst.Task("a", ("x", "y"))
SGD = torch.optim.SGD(nn.Linear(1, 1).parameters())


class Thing:
    """A model, an encoder and a frame, made anew for each row that asks for them."""

    def __init__(self, folder):
        self.folder, self.frame = folder, small.frame(16)

    @functools.cached_property
    def model(self):
        return small.model()

    @property
    def encoder(self):
        return self.model.encoder

    def build(self, **options):
        return mtst.SentenceEncoder(
            **{"backbone": self.encoder.backbone, "tokenizer": tiny_tokenizer()} | options
        )

    def forward(self, labels=None, ids=IDS, mask=MASK):
        return self.model(ids, mask, labels)

    def fit(self, frame=None, model=None, **options):
        frame = self.frame if frame is None else frame
        return mtst.fit(model or self.model, frame, **{"epochs": 1, "progress": False} | options)

    def csv(self, content, text="text", tasks=None):
        path = self.folder / "mine.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return mtst.load_csv(path, text, {"a": "z"} if tasks is None else tasks)


# (what is called, the kind of error, words that its message must have)
ROWS = [
    # sentences
    (
        lambda t: t.encoder.encode(None),
        TypeError,
        "sentences must be a list of strings; got NoneType",
    ),
    (lambda t: t.encoder.encode(3), TypeError, "sentences must be a list of strings; got int"),
    (lambda t: t.encoder.encode(b"x"), TypeError, "got bytes"),
    (lambda t: t.encoder.encode({"a": "b"}), TypeError, "got dict"),
    (lambda t: t.encoder.encode(["a", None]), TypeError, "sentences[1] must be a string; got None"),
    (
        lambda t: t.encoder.encode(["a", "b", NAN]),
        TypeError,
        "sentences[2] must be a string; got nan of type float",
    ),
    (
        lambda t: t.encoder.encode([["a"]]),
        TypeError,
        "sentences[0] must be a string; got ['a'] of type list",
    ),
    (
        lambda t: t.encoder.encode(["a"], token_budget=0),
        ValueError,
        "token_budget must be a positive whole number; got 0",
    ),
    (
        lambda t: t.encoder.encode(["a"], token_budget="many"),
        ValueError,
        "token_budget must be a positive whole number",
    ),
    (
        lambda t: t.encoder.encode(["a"], precision="int8"),
        ValueError,
        "precision must be 'float32', 'bfloat16' or 'auto'; got 'int8'",
    ),
    (lambda t: t.model.predict(None), TypeError, "sentences must be a list of strings"),
    (lambda t: t.model.predict(["a", None]), TypeError, "sentences[1] must be a string"),
    # encoders and poolings
    (
        lambda t: t.build(pooling="median"),
        ValueError,
        "pooling must be one of mean, cls, max, lasttoken, weightedmean",
    ),
    (lambda t: t.build(pooling=["mean"]), ValueError, "mean_sqrt_len_tokens; got ['mean']"),
    (lambda t: t.build(max_length=0), ValueError, "max_length must be a whole number from 3 to 40"),
    (lambda t: t.build(max_length=10**6), ValueError, "got 1000000"),
    (lambda t: t.build(max_length=12.5), ValueError, "got 12.5"),
    (
        lambda t: t.build(backbone="all-MiniLM-L6-v2"),
        TypeError,
        "backbone must be of type PreTrainedModel; got 'all-MiniLM-L6-v2'",
    ),
    (
        lambda t: t.build(tokenizer=None),
        TypeError,
        "tokenizer must be of type PreTrainedTokenizerBase; got None",
    ),
    (lambda t: mtst.masked_mean(TOKENS, torch.ones(2, 4)), ValueError, "got [2, 3, 4] and [2, 4]"),
    (
        lambda t: mtst.masked_mean(TOKENS[0], torch.ones(2, 3)),
        ValueError,
        "token_embeddings must be [B, T, H]",
    ),
    (
        lambda t: mtst.masked_mean(TOKENS, torch.tensor([[1, 1, 1], [0, 0, 0]])),
        ValueError,
        "sentence 1 of the batch has no real token",
    ),
    (
        lambda t: mtst.masked_mean(TOKENS.numpy(), torch.ones(2, 3)),
        TypeError,
        "token_embeddings must be of type Tensor",
    ),
    (
        lambda t: mtst.masked_mean(TOKENS, [[1, 1, 1]] * 2),
        TypeError,
        "attention_mask must be of type Tensor",
    ),
    (
        lambda t: mtst.cosine_matrix(np.ones((2, 3)), np.ones((2, 4))),
        ValueError,
        "got [2, 3] and [2, 4]",
    ),
    (
        lambda t: mtst.cosine_matrix(np.ones(3)),
        ValueError,
        "cosine_matrix needs [N, H] and [M, H]; got [3]",
    ),
    (
        lambda t: mtst.cosine_matrix(np.array([[1.0, 2], [NAN, 1]])),
        ValueError,
        "row 1 of a holds another value",
    ),
    (
        lambda t: mtst.cosine_matrix(np.ones((1, 2)), [["a", "b"]]),
        ValueError,
        "row 0 of b holds another value",
    ),
    (lambda t: mtst.cosine_matrix(None), ValueError, "cosine_matrix needs [N, H]"),
    # tasks and models
    (lambda t: mtst.Task("a", ()), ValueError, "Task 'a': labels must be two or more"),
    (
        lambda t: mtst.Task("a", ("x",)),
        ValueError,
        "labels must be two or more, each once; got ('x',)",
    ),
    (lambda t: mtst.Task("a", ("x", "x")), ValueError, "each once; got ('x', 'x')"),
    (
        lambda t: mtst.Task("a", "positive"),
        TypeError,
        "labels must be of type tuple or list; got 'positive'",
    ),
    (
        lambda t: mtst.Task("a", ("x", None)),
        ValueError,
        "None and NaN mean that a sentence has no label",
    ),
    (
        lambda t: mtst.Task("a", ("x", NAN)),
        ValueError,
        "None and NaN mean that a sentence has no label",
    ),
    (
        lambda t: mtst.Task("", ("x", "y")),
        ValueError,
        "name must be a string, not empty, without a dot, and not 'text'",
    ),
    (lambda t: mtst.Task("a.b", ("x", "y")), ValueError, "got 'a.b'"),
    (lambda t: mtst.Task(3, ("x", "y")), ValueError, "got 3"),
    (
        lambda t: mtst.Task("a", ("x", "y"), -1),
        ValueError,
        "Task 'a': weight must be a number above 0; got -1",
    ),
    (
        lambda t: mtst.Task("a", ("x", "y"), NAN),
        ValueError,
        "weight must be a number above 0; got nan",
    ),
    (
        lambda t: mtst.Task("a", ("x", "y"), "2"),
        TypeError,
        "weight must be a number above 0; got '2' of type str",
    ),
    (
        lambda t: mtst.MultiTaskModel(t.encoder, []),
        TypeError,
        "tasks must be a list of at least one Task; got []",
    ),
    (lambda t: mtst.MultiTaskModel(t.encoder, 3), TypeError, "tasks must be a list; got 3"),
    (lambda t: mtst.MultiTaskModel(t.encoder, ["sentiment"]), TypeError, "got ['sentiment']"),
    (
        lambda t: mtst.MultiTaskModel(t.encoder, [TASK, TASK]),
        ValueError,
        "tasks must have different names; got ['a', 'a']",
    ),
    (
        lambda t: mtst.MultiTaskModel(tiny_backbone(), [TASK]),
        TypeError,
        "encoder must be of type SentenceEncoder",
    ),
    (
        lambda t: mtst.MultiTaskModel(t.encoder, [TASK], dropout=1.5),
        ValueError,
        "dropout must be a number from 0 to below 1; got 1.5",
    ),
    (
        lambda t: mtst.MultiTaskModel.from_pretrained(3),
        TypeError,
        "name must be of type str or PathLike; got 3",
    ),
    (
        lambda t: mtst.MultiTaskModel.from_pretrained(t.folder / "nowhere"),
        ValueError,
        "nowhere is no folder here",
    ),
    (
        lambda t: mtst.MultiTaskModel.from_pretrained(t.folder),
        ValueError,
        "holds no multi-task model: tasks.json is not there",
    ),
    # a batch
    (
        lambda t: t.forward({"animal": torch.tensor([7])}),
        ValueError,
        "must be from 0 to 1, or -100 for none; got 7 at position 0",
    ),
    (lambda t: t.forward({"animal": torch.tensor([-1])}), ValueError, "got -1 at position 0"),
    (
        lambda t: t.forward({"colour": torch.tensor([0])}),
        ValueError,
        "labels of unknown tasks ['colour']; this model has ['animal', 'letter']",
    ),
    (
        lambda t: t.forward({"animal": torch.tensor([0, 1])}),
        ValueError,
        "labels of task 'animal' must be a LongTensor [1]",
    ),
    (lambda t: t.forward({"animal": torch.tensor([0.5])}), ValueError, "got torch.float32 [1]"),
    (
        lambda t: t.forward({"animal": [0]}),
        ValueError,
        "must be a LongTensor [1], one a sentence; got [0]",
    ),
    (lambda t: t.forward(torch.tensor([0])), TypeError, "labels must be of type dict"),
    (
        lambda t: t.forward(mask=torch.ones(1, 4, dtype=torch.long)),
        ValueError,
        "attention_mask [B, T]",
    ),
    (
        lambda t: t.forward(mask=torch.zeros(1, 3, dtype=torch.long)),
        ValueError,
        "sentence 0 of the batch has no real token",
    ),
    # freezing
    (
        lambda t: mtst.freeze("encoder"),
        TypeError,
        "module must be of type Module; got 'encoder' of type str",
    ),
    (lambda t: mtst.freeze(next(t.model.parameters())), TypeError, "module must be of type Module"),
    (lambda t: mtst.unfreeze(None), TypeError, "module must be of type Module; got None"),
    (
        lambda t: mtst.unfreeze_top_blocks(t.model, -1),
        ValueError,
        "n must be a whole number from 0 to 3, the number of blocks; got -1",
    ),
    (lambda t: mtst.unfreeze_top_blocks(t.model, 4), ValueError, "got 4"),
    (lambda t: mtst.unfreeze_top_blocks(t.model, 1.5), ValueError, "got 1.5"),
    (lambda t: mtst.unfreeze_top_blocks(t.model, None), ValueError, "got None"),
    (lambda t: mtst.unfreeze_top_blocks("model", 1), TypeError, "model must be of type Module"),
    (lambda t: mtst.parameter_report("model"), TypeError, "model must be of type Module"),
    (
        lambda t: mtst.GradualUnfreezing(start="early"),
        TypeError,
        "start must be a number from 0 to below 1; got 'early'",
    ),
    (
        lambda t: mtst.GradualUnfreezing(start=0.7, end=0.6),
        ValueError,
        "start must be at most end; got 0.7 and 0.6",
    ),
    (
        lambda t: mtst.GradualUnfreezing(base_lr=None),
        TypeError,
        "base_lr must be a number above 1e-9",
    ),
    (
        lambda t: mtst.GradualUnfreezing(decay=1.1),
        ValueError,
        "decay must be a number above 1e-9 and at most 1; got 1.1",
    ),
    (
        lambda t: mtst.GradualUnfreezing(warmup=0),
        ValueError,
        "warmup must be a whole number of steps, 1 or more; got 0",
    ),
    # rates
    (
        lambda t: mtst.layerwise_lr_groups(t.model, "1e-4"),
        TypeError,
        "base_lr must be a number above 1e-9 and at most 1; got '1e-4'",
    ),
    (lambda t: mtst.layerwise_lr_groups(t.model, None), TypeError, "base_lr"),
    (lambda t: mtst.layerwise_lr_groups(t.model, True), TypeError, "base_lr"),
    (
        lambda t: mtst.layerwise_lr_groups(t.model, -1e-4),
        ValueError,
        "base_lr must be a number above 1e-9 and at most 1; got -0.0001",
    ),
    (lambda t: mtst.layerwise_lr_groups(t.model, NAN), ValueError, "got nan"),
    (lambda t: mtst.layerwise_lr_groups(t.model, float("inf")), ValueError, "got inf"),
    (
        lambda t: mtst.layerwise_lr_groups(t.model, decay=0),
        ValueError,
        "decay must be a number above 1e-9 and at most 1; got 0",
    ),
    (lambda t: mtst.layerwise_lr_groups(t.model, decay=1.05), ValueError, "got 1.05"),
    (
        lambda t: mtst.layerwise_lr_groups(t.model, head_lr=0),
        ValueError,
        "head_lr must be a number above 1e-9 and at most 1; got 0",
    ),
    (
        lambda t: mtst.layerwise_lr_groups(t.model, weight_decay=-0.1),
        ValueError,
        "weight_decay must be a number from 0 to below 1",
    ),
    (lambda t: mtst.layerwise_lr_groups(None), TypeError, "model must be of type Module; got None"),
    (
        lambda t: mtst.layerwise_lr_groups(nn.Linear(1, 1)),
        ValueError,
        "unknown architecture 'Linear'",
    ),
    (lambda t: mtst.layer_stack(None), ValueError, "unknown architecture 'NoneType'"),
    (lambda t: mtst.lr_table("groups"), ValueError, "groups must be those of layerwise_lr_groups"),
    (
        lambda t: mtst.lr_table([{"params": [], "lr": 1}]),
        ValueError,
        "groups must be those of layerwise_lr_groups",
    ),
    (lambda t: mtst.lr_table(3), TypeError, "groups must be a list; got 3"),
    (lambda t: mtst.lr_table([]), ValueError, "groups must be those of layerwise_lr_groups"),
    (
        lambda t: mtst.warmup_linear(SGD, 0),
        ValueError,
        "total_steps must be a whole number of 1 or more; got 0",
    ),
    (
        lambda t: mtst.warmup_linear(SGD, "10"),
        TypeError,
        "total_steps must be a whole number of 1 or more; got '10'",
    ),
    (
        lambda t: mtst.warmup_linear(SGD, 10, NAN),
        ValueError,
        "warmup_fraction must be a number from 0 to below 1; got nan",
    ),
    (lambda t: mtst.warmup_linear(t.model, 10), TypeError, "optimizer must be of type Optimizer"),
    # backbones
    (lambda t: mtst.load_backbone(3), TypeError, "name must be a string or a path, not int"),
    (lambda t: mtst.load_backbone(""), mtst.BackboneNotAvailable, "name is empty"),
    (lambda t: mtst.load_backbone(t.folder), mtst.BackboneNotAvailable, "no model.safetensors"),
    (
        lambda t: mtst.load_backbone("./nowhere"),
        mtst.BackboneNotAvailable,
        "./nowhere: no such folder",
    ),
    # one's own CSV
    (
        lambda t: mtst.load_csv(t.folder / "no.csv", "t", {"a": "z"}),
        FileNotFoundError,
        "no.csv: there is no such file",
    ),
    (
        lambda t: mtst.load_csv(t.folder, "t", {"a": "z"}),
        FileNotFoundError,
        "there is no such file",
    ),
    (lambda t: t.csv("x,z\n1,2\n"), ValueError, "mine.csv has no column 'text'; it has 'x', 'z'"),
    (
        lambda t: t.csv("text,y\n1,2\n"),
        ValueError,
        "mine.csv has no column 'z'; it has 'text', 'y'",
    ),
    (lambda t: t.csv(""), ValueError, "has no column 'text'; it has none"),
    (lambda t: t.csv("text,z\n"), ValueError, "mine.csv has no rows under its header"),
    (
        lambda t: t.csv("text,z\na,b\nc,d,e\n"),
        ValueError,
        "mine.csv, line 3: the header has 2 columns, this row has not",
    ),
    (lambda t: t.csv("text,z\na,b\nc\n"), ValueError, "mine.csv, line 3"),
    (
        lambda t: t.csv("text,z\ncafé,b\n".encode("latin-1")),
        ValueError,
        "mine.csv is not UTF-8 (byte 10",
    ),
    (
        lambda t: t.csv("text,z\na,b\nc,b\n"),
        ValueError,
        "column 'z': a task needs two different labels or more; found ['b']",
    ),
    (
        lambda t: t.csv("text,z\na,b\n ,d\n"),
        ValueError,
        "mine.csv, line 3, column 'text': the text is empty",
    ),
    (lambda t: t.csv('text,z\n"open,b\nc,d\n'), ValueError, "mine.csv is not a regular CSV"),
    (
        lambda t: t.csv("text,z\n" + "x" * 10_000_000 + ",b\nc,d\n"),
        ValueError,
        "field larger than field limit",
    ),
    (
        lambda t: t.csv("text,z\na,b\n", tasks={}),
        ValueError,
        "tasks must be a dict {task name: column}",
    ),
    (lambda t: t.csv("text,z\na,b\n", tasks=["z"]), ValueError, "got ['z']"),
    # training
    (lambda t: t.fit(t.frame[:0]), ValueError, "the frame has no rows"),
    (lambda t: t.fit("frame"), TypeError, "frame must be of type DataFrame; got 'frame'"),
    (
        lambda t: t.fit(t.frame.drop(columns="text")),
        ValueError,
        "the frame has no column 'text'; it has 'animal', 'letter'",
    ),
    (
        lambda t: t.fit(t.frame[["text"]]),
        ValueError,
        "the frame has a column for none of the tasks ['animal', 'letter']",
    ),
    (
        lambda t: t.fit(t.frame.assign(text=NAN)),
        TypeError,
        "text[0] must be a string; got nan of type float",
    ),
    (
        lambda t: t.fit(t.frame.assign(animal="dog")),
        ValueError,
        "task 'animal', row 0: 'dog' is not one of its labels",
    ),
    (
        lambda t: t.fit(t.frame.assign(animal="Cat")),
        ValueError,
        "row 0: 'Cat' is not one of its labels ('cat', 'other')",
    ),
    (
        lambda t: t.fit(t.frame.assign(animal=None, letter=None)),
        ValueError,
        "not one label for any of the tasks ['animal', 'letter']",
    ),
    (lambda t: t.fit(epochs=0), ValueError, "epochs must be a whole number of 1 or more; got 0"),
    (lambda t: t.fit(epochs=1.5), TypeError, "epochs must be a whole number of 1 or more; got 1.5"),
    (
        lambda t: t.fit(batch_size=0),
        ValueError,
        "batch_size must be a whole number of 1 or more; got 0",
    ),
    (
        lambda t: t.fit(batch_size="32"),
        TypeError,
        "batch_size must be a whole number of 1 or more; got '32'",
    ),
    (
        lambda t: t.fit(seed="x"),
        TypeError,
        "seed must be a whole number from 0 to 2**63 - 1; got 'x'",
    ),
    (lambda t: t.fit(seed=2**63), ValueError, "2**63 - 1; got 9223372036854775808"),
    (
        lambda t: t.fit(precision="fp8"),
        ValueError,
        "precision must be 'float32', 'bfloat16' or 'auto'; got 'fp8'",
    ),
    (
        lambda t: t.fit(optimizer="adam"),
        TypeError,
        "optimizer must be of type Optimizer or NoneType; got 'adam'",
    ),
    (lambda t: t.fit(optimizer=torch.optim.AdamW), TypeError, "got the class AdamW"),
    (
        lambda t: t.fit(model=t.encoder),
        TypeError,
        "model must be a MultiTaskModel; got SentenceEncoder",
    ),
    (
        lambda t: mtst.fit(None, t.frame, epochs=1),
        TypeError,
        "model must be a MultiTaskModel; got NoneType",
    ),
    (
        lambda t: t.fit(valid=t.frame[["text"]]),
        ValueError,
        "the frame has a column for none of the tasks",
    ),
    (lambda t: t.fit(callbacks=3), TypeError, "callbacks must be of type list or tuple; got 3"),
    (
        lambda t: t.fit(checkpoint=123),
        TypeError,
        "checkpoint must be of type str or PathLike; got 123",
    ),
    (
        lambda t: t.fit(checkpoint=Path(__file__)),
        ValueError,
        "checkpoint must be a folder that can be written to",
    ),
    (lambda t: mtst.evaluate(t.model, t.frame[:0]), ValueError, "the frame has no rows"),
    (
        lambda t: mtst.evaluate(t.model, None),
        TypeError,
        "frame must be of type DataFrame; got None",
    ),
    (
        lambda t: mtst.evaluate(t.model, t.frame[["text"]]),
        ValueError,
        "a column for none of the tasks",
    ),
    (lambda t: mtst.evaluate(t.encoder, t.frame), TypeError, "model must be a MultiTaskModel"),
    (
        lambda t: mtst.seed_everything("a"),
        TypeError,
        "seed must be a whole number from 0 to 2**63 - 1; got 'a'",
    ),
    (lambda t: mtst.seed_everything(1.5), TypeError, "got 1.5 of type float"),
    (lambda t: mtst.seed_everything(-1), ValueError, "got -1"),
    (lambda t: mtst.seed_everything(2**63), ValueError, "got 9223372036854775808"),
]


@pytest.mark.parametrize("row", range(len(ROWS)), ids=lambda i: f"{i}: {ROWS[i][2][:60]}")
def test_bad_input(row, tmp_path):
    call, kind, words = ROWS[row]
    with pytest.raises(kind) as caught:
        call(Thing(tmp_path))
    assert words in str(caught.value)
    # From our own code, and not from the depths of a library.
    raised = next(
        f
        for f in reversed(traceback.extract_tb(caught.value.__traceback__))
        if "site-packages" in f.filename or "mtst_utils" in f.filename or "lib/python" in f.filename
    )
    assert "mtst_utils" in raised.filename, raised


def test_valid_rows_are_looked_at_before_training():
    """Bad validation rows are found at once, and not at the end of the first epoch."""
    model, steps = small.model(), []

    class Count:
        def on_step(self, run):
            steps.append(run.step)

    with pytest.raises(ValueError, match="a column for none") as caught:
        mtst.fit(
            model,
            small.frame(16),
            small.frame(16)[["text"]],
            epochs=1,
            callbacks=[Count()],
            progress=False,
        )
    assert not steps
    assert "valid, the validation sentences" in caught.value.__notes__[0]


def test_a_csv_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbftext,z\na,b\nc,d\n")
    frame = mtst.load_csv(tmp_path / "excel.csv", "text", {"a": "z"})
    pd.testing.assert_frame_equal(
        frame, pd.DataFrame({"text": ["a", "c"], "a": ["b", "d"]}, dtype=object)
    )
