"""MultiTaskModel: losses, missing labels, saving, prediction, HF Trainer."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_backbone, tiny_tokenizer
from sentence_transformers import SentenceTransformer
from transformers import Trainer, TrainingArguments

import mtst_utils as mtst

TASKS = [mtst.Task("domain", ("tweet", "review", "news")), mtst.Task("sentiment", ("bad", "good"))]
INPUTS = {
    "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}
LABELS = {"domain": torch.tensor([0, 2]), "sentiment": torch.tensor([1, 0])}


@pytest.fixture
def model(tiny_encoder):
    mtst.seed_everything(0)
    return mtst.MultiTaskModel(tiny_encoder, TASKS).eval()


def test_shapes_and_one_embedding_for_all_heads(model):
    output = model(**INPUTS)
    assert {name: tuple(logits.shape) for name, logits in output.logits.items()} == {
        "domain": (2, 3),
        "sentiment": (2, 2),
    }
    assert output.embeddings.shape == (2, 32)
    assert output.loss is None
    for name, head in model.heads.items():
        assert torch.equal(output.logits[name], head(output.embeddings))


def test_total_is_the_weighted_sum(tiny_encoder):
    tasks = [TASKS[0], mtst.Task("sentiment", ("bad", "good"), weight=0.25)]
    model = mtst.MultiTaskModel(tiny_encoder, tasks).eval()
    output = model(**INPUTS, labels=LABELS)
    for name in LABELS:
        expected = torch.nn.functional.cross_entropy(output.logits[name], LABELS[name])
        assert torch.allclose(output.losses[name], expected)
    assert torch.allclose(output.loss, output.losses["domain"] + 0.25 * output.losses["sentiment"])


def test_gradients_add_up_and_reach_the_encoder(model):
    def gradient(loss):
        model.zero_grad()
        loss.backward(retain_graph=True)
        return torch.cat(
            [p.grad.flatten() for n, p in model.encoder.named_parameters() if p.grad is not None]
        )

    output = model(**INPUTS, labels=LABELS)
    parts = [gradient(loss) for loss in output.losses.values()]
    assert all(part.abs().sum() > 0 for part in parts)
    assert torch.allclose(gradient(output.loss), sum(parts), atol=1e-6)


def test_missing_labels_count_for_nothing(model):
    some = {"domain": torch.tensor([0, -100]), "sentiment": torch.tensor([-100, -100])}
    output = model(**INPUTS, labels=some)
    alone = model(
        INPUTS["input_ids"][:1], INPUTS["attention_mask"][:1], {"domain": torch.tensor([0])}
    )
    assert torch.allclose(output.losses["domain"], alone.losses["domain"], atol=1e-6)
    assert output.losses["sentiment"] == 0  # not NaN
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.heads["sentiment"].weight.grad.abs().sum() == 0


def test_an_encoder_of_ones_own_need_not_know_token_types(tiny_encoder):
    class Plain(mtst.SentenceEncoder):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids, attention_mask)

    own = Plain(tiny_encoder.backbone, tiny_encoder.tokenizer)
    assert mtst.MultiTaskModel(own, TASKS)(**INPUTS, labels=LABELS).loss.isfinite()


def test_any_number_of_tasks(tiny_encoder):
    for count in (1, 5):
        tasks = [mtst.Task(f"task {i}", [str(k) for k in range(i + 2)]) for i in range(count)]
        model = mtst.MultiTaskModel(tiny_encoder, tasks).eval()
        output = model(**INPUTS, labels={task.name: torch.tensor([0, 1]) for task in tasks})
        assert len(output.losses) == count
        assert math.isclose(
            output.loss.item(), sum(loss.item() for loss in output.losses.values()), rel_tol=1e-5
        )


def test_labels_of_an_unknown_task(model):
    with pytest.raises(
        ValueError, match=r"unknown tasks \['topic'\]; this model has \['domain', 'sentiment'\]"
    ):
        model(**INPUTS, labels={"topic": LABELS["domain"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", ("a", "b")), "name must be a string, not empty"),
        (("a.b", ("a", "b")), "without a dot, and not .text.*got .a.b."),
        ((3, ("a", "b")), "got 3"),
        (("a\ud83d", ("a", "b")), "name holds half a character"),
        (("t", ("a",)), "two or more, each once"),
        (("t", ("a", "b", "a")), "two or more, each once"),
        (("t", ("a", "b"), 0), "weight must be a number above 0; got 0"),
        (("t", ("a", "b"), float("nan")), "got nan"),
        (("t", ("a", "b"), float("inf")), "got inf"),
    ],
)
def test_bad_tasks(arguments, message):
    with pytest.raises(ValueError, match=message):
        mtst.Task(*arguments)


def test_bad_models(tiny_encoder):
    with pytest.raises(TypeError, match="at least one Task; got \\[\\]"):
        mtst.MultiTaskModel(tiny_encoder, [])
    with pytest.raises(TypeError, match="'sentiment'"):
        mtst.MultiTaskModel(tiny_encoder, ["sentiment"])
    with pytest.raises(ValueError, match="different names"):
        mtst.MultiTaskModel(tiny_encoder, [TASKS[0], TASKS[0]])
    twice = mtst.Task("domain probability", ("low", "high"))
    with pytest.raises(ValueError, match="'domain probability' is a column that predict gives"):
        mtst.MultiTaskModel(tiny_encoder, [TASKS[0], twice])
    with pytest.raises(ValueError, match="dropout must be a number from 0 to below 1; got 1"):
        mtst.MultiTaskModel(tiny_encoder, TASKS, dropout=1)


def test_task_encodes_labels():
    assert TASKS[0].encode(["news", None, "tweet", float("nan"), pd.NA]).tolist() == [
        2,
        -100,
        0,
        -100,
        -100,
    ]
    assert TASKS[0].encode([]).dtype == torch.long
    with pytest.raises(ValueError, match="task 'domain', row 1: 'blog' is not one of its labels"):
        TASKS[0].encode(["news", "blog"])


def test_dropout_in_training_only(model):
    model.train()
    assert not torch.equal(model(**INPUTS).logits["domain"], model(**INPUTS).logits["domain"])
    model.eval()
    assert torch.equal(model(**INPUTS).logits["domain"], model(**INPUTS).logits["domain"])


def test_predict(model):
    texts = ["the cat sat", "late", "nobody expected the train"]
    table = model.train().predict(texts)
    assert list(table.columns) == [
        "text",
        "domain",
        "domain probability",
        "sentiment",
        "sentiment probability",
    ]
    assert model.training
    model.eval()
    probability = (
        model(*model.encoder.collate(model.encoder.tokenize(texts)[0])).logits["domain"].softmax(-1)
    )
    assert table["domain"].tolist() == [TASKS[0].labels[i] for i in probability.argmax(1)]
    assert np.allclose(table["domain probability"], probability.max(1).values.detach(), atol=0.01)
    assert {p.dtype for p in model.probabilities(texts).values()} == {np.dtype(np.float32)}
    assert len(model.predict("one string")) == 1
    with pytest.raises(TypeError, match=r"sentences\[1\]"):
        model.predict(["a", None])


def test_save_and_load(model, tmp_path):
    model.tasks["sentiment"] = mtst.Task("sentiment", ("bad", "good"), weight=0.5)
    model.save_pretrained(tmp_path / "saved")
    assert not [
        f.name
        for f in (tmp_path / "saved").rglob("*")
        if f.suffix in (".bin", ".pt", ".pkl", ".pickle")
    ]
    again = mtst.MultiTaskModel.from_pretrained(tmp_path / "saved")
    assert again.tasks == model.tasks
    assert again.dropout.p == model.dropout.p
    before, after = model.state_dict(), again.state_dict()
    assert set(before) - set(after) == {
        "encoder.backbone.pooler.dense.weight",
        "encoder.backbone.pooler.dense.bias",
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    texts = ["the cat sat", "late"]
    assert again.predict(texts).equals(model.predict(texts))
    peer = SentenceTransformer(str(tmp_path / "saved"))
    assert np.allclose(peer.encode(texts), model.encoder.encode(texts), atol=1e-5)


def test_loading_what_is_no_multitask_model(tiny_encoder, tmp_path):
    tiny_encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no multi-task model: tasks\.json is not there"):
        mtst.MultiTaskModel.from_pretrained(tmp_path)


def test_hf_trainer_trains_it_unchanged(tmp_path):
    mtst.seed_everything(0)
    model = mtst.MultiTaskModel(
        mtst.SentenceEncoder(tiny_backbone("mpnet"), tiny_tokenizer()), TASKS
    )
    data = [
        {"input_ids": [2, 5 + i % 2, 3], "labels": {"domain": i % 2, "sentiment": i % 2}}
        for i in range(32)
    ]
    settings = TrainingArguments(
        str(tmp_path),
        num_train_epochs=6,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        eval_strategy="epoch",
        logging_steps=4,
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, settings, model.collate, data, eval_dataset=data[:8])
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert json.dumps(losses)  # plain numbers
