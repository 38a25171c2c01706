"""Reports from other projects, tried here: one test each, named after the report.

The table in README.md says what was seen.
"""

import contextlib
import copy
import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import small
import torch
from conftest import CONFIGS, SIZE, tiny_backbone, tiny_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch.optim import AdamW
from torch.optim import lr_scheduler as schedules
from transformers import (
    Adafactor,
    AutoModel,
    CamembertConfig,
    Data2VecTextConfig,
    LongformerConfig,
    Trainer,
    TrainingArguments,
)
from transformers.optimization import AdafactorSchedule

import mtst_utils as mtst
from mtst_utils import checkpoints, multitask

FRAME = small.frame()
TEXTS = FRAME.text.tolist()
OPTIONS = {"epochs": 1, "batch_size": 8, "precision": "float32", "progress": False}
REPORTS: dict[str, Callable] = {}


def report(source):
    def note(function):
        REPORTS[source] = function
        return function

    return note


def fit(model, frame=FRAME, valid=None, **options):
    return mtst.fit(model, frame, valid, **OPTIONS | options)


def encoder(tokenizer=None, **options):
    return mtst.SentenceEncoder(tiny_backbone(), tokenizer or tiny_tokenizer(), **options)


def without_ends():
    """A tokenizer that adds no special token."""
    tokenizer = tiny_tokenizer()
    bare = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.backend_tokenizer.post_processor = bare
    return tokenizer


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def in_threads(function, times):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: function(), range(times)))


# Threads, seeds, global settings


@report("huggingface/sentence-transformers#794")
def threads_share_a_tokenizer(_):
    ours = encoder(max_length=6)
    texts = [text + " the" * (i % 9) for i, text in enumerate(TEXTS[:32])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some are cut
        expected = ours.encode(texts)
        found = in_threads(lambda: ours.encode(texts), 60)
    assert all(np.array_equal(expected, embeddings) for embeddings in found)


@report("MihaiBuilds/memory-vault#148")
def threads_share_a_model(_):
    model = small.model(0.5).train()
    weights = dict(model.named_parameters())
    for precision in ("float32", "bfloat16"):
        expected = model.probabilities(TEXTS, precision)["animal"]
        found = in_threads(lambda p=precision: model.probabilities(TEXTS, p)["animal"], 30)
        assert all(np.array_equal(expected, probabilities) for probabilities in found)
    assert all(part.training for name, part in model.named_modules() if "dropout" in name)
    assert all(weights[name] is p for name, p in model.named_parameters())


@report("huggingface/trl#1648")
def training_does_not_seed_what_comes_after_it(_):
    ours, heads = encoder(), []
    torch.manual_seed(5)
    for _run in range(3):  # a spread between runs, as people measure it
        model = mtst.MultiTaskModel(ours, [mtst.Task("letter", ("b", "c"))])
        heads.append(model.heads["letter"].weight.detach().clone())
        fit(model)
    assert not torch.equal(heads[1], heads[2])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(small_model := copy.deepcopy(model))
    assert torch.equal(torch.rand(3), expected)
    assert not small_model.training


@report("choyingw/SynergyNet#22")
def gradients_are_off(_):
    losses = [fit(small.model()).loss]
    with torch.no_grad():
        losses.append(fit(small.model()).loss)
        assert not torch.is_grad_enabled()
    model = small.model()
    with torch.inference_mode():
        losses.append(fit(model).loss)
        assert torch.is_inference_mode_enabled()
    assert losses[0].equals(losses[1])
    assert losses[0].equals(losses[2])


@report("huggingface/transformers#25491")
def weights_of_another_type(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = small.model().to(dtype)
        vanishing = pytest.warns(UserWarning, match=r"float16.*model\.float\(\)")
        with vanishing if dtype == torch.float16 else contextlib.nullcontext():
            fit(model)
        assert {p.dtype for p in model.parameters()} == {dtype}
        expected = small.model().probabilities(TEXTS)["letter"]
        found = small.model().to(dtype).probabilities(TEXTS)["letter"]
        assert np.allclose(found, expected, atol=0.05)
    encoder().save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float64)  # as scientific code does
    try:
        ours = mtst.SentenceEncoder.from_pretrained(tmp_path)
        fit(mtst.MultiTaskModel(ours, [mtst.Task("letter", ("b", "c"))]))
    finally:
        torch.set_default_dtype(torch.float32)


@report("Dao-AILab/flash-attention#299")
def predicting_first_then_training(_):
    for kind in CONFIGS:
        ours = mtst.SentenceEncoder(tiny_backbone(kind), tiny_tokenizer())
        model = mtst.MultiTaskModel(ours, small.model().tasks.values())
        model.predict(TEXTS)
        fit(model, FRAME[:16])


# Optimizers, schedules, callbacks


@report("pytorch/pytorch#171864")
def resumed_schedules(tmp_path):
    def multi_step(optimizer, steps):
        return schedules.MultiStepLR(optimizer, [4, 8, 12])

    def in_sequence(optimizer, steps):
        parts = [schedules.LinearLR(optimizer, total_iters=4), multi_step(optimizer, steps)]
        return schedules.SequentialLR(optimizer, parts, [4])

    def one_cycle(optimizer, steps):
        return schedules.OneCycleLR(optimizer, 1e-3, total_steps=steps)

    def run(folder, schedule, *callbacks):
        model = small.model()
        options = {"epochs": 2, "scheduler": schedule, "checkpoint": folder}
        optimizer = AdamW(model.parameters(), lr=1e-3)
        return model, fit(model, optimizer=optimizer, callbacks=callbacks, **options)

    class Interrupt:
        at = 6

        def on_step(self, run):
            if run.step == Interrupt.at:
                Interrupt.at = None
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SAVE_SECONDS", float("-inf"))
        for schedule in (multi_step, in_sequence, one_cycle):
            expected, history = run(None, schedule)
            Interrupt.at = 6
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / schedule.__name__, schedule, Interrupt())
            resumed, resumed_history = run(tmp_path / schedule.__name__, schedule, Interrupt())
            assert resumed_history.lr.tolist() == history.lr.tolist()
            assert same_weights(resumed, expected)


@report("Lightning-AI/pytorch-lightning#2280")
def what_is_no_schedule_is_refused_before_training(_):
    model = small.model()
    before, optimizer = copy.deepcopy(model), AdamW(model.parameters())
    for scheduler, message in (
        (lambda optimizer, steps: schedules.ReduceLROnPlateau(optimizer), "returned ReduceLROnPl"),
        (lambda optimizer, steps: None, "returned NoneType"),
        (schedules.StepLR(optimizer, 3), "got an object, StepLR"),
    ):
        with pytest.raises(TypeError, match=f"^scheduler must be a function of .*{message}"):
            fit(model, optimizer=optimizer, scheduler=scheduler)
    assert same_weights(model, before)


@report("huggingface/pytorch-image-models#1870")
def an_optimizer_that_sets_its_own_rate(_):
    def adafactor(model):
        return Adafactor(model.parameters(), relative_step=True, warmup_init=True, lr=None)

    model = small.model()
    with pytest.raises(ValueError, match=r"Adafactor has no rate .*AdafactorSchedule"):
        fit(model, optimizer=adafactor(model))
    history = fit(
        model,
        optimizer=adafactor(model),
        scheduler=lambda optimizer, steps: AdafactorSchedule(optimizer),
    )
    assert history.lr.dtype == float
    assert (history.lr > 0).any()


@report("fastai/fastai#2133")
def an_optimizer_made_before_unfreezing(_):
    model = small.model()
    mtst.freeze(model.encoder)
    optimizer = AdamW(mtst.layerwise_lr_groups(model))
    fit(model, optimizer=optimizer)  # as it was made
    mtst.unfreeze(model.encoder)
    message = r"does not hold \d+ parameters that may learn.*first 'encoder"
    with pytest.warns(UserWarning, match=message):
        fit(model, optimizer=optimizer)
    with pytest.raises(ValueError, match="optimizer: it holds no parameter of this model"):
        fit(copy.deepcopy(model), optimizer=optimizer)


class Uncertainty(mtst.MultiTaskModel):
    """Kendall et al. 2018: the weight of each loss is learned."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.log_variances = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.zeros(())) for name in self.tasks}
        )

    def total_loss(self, losses):
        weights = self.log_variances
        return sum(torch.exp(-weights[name]) * v + weights[name] for name, v in losses.items())


@report("ifzhang/FairMOT#19")
def learned_weights_of_losses(tmp_path):
    model = Uncertainty(encoder(), small.model().tasks.values())
    parts = [*model.encoder.parameters(), *model.heads.parameters()]
    with pytest.warns(UserWarning, match="does not hold 2 parameters.*first 'log_variances"):
        fit(model, optimizer=AdamW(parts))
    fit(model, optimizer=AdamW(model.parameters(), lr=1e-2))
    model.save_pretrained(tmp_path)
    found = Uncertainty.from_pretrained(tmp_path).log_variances
    assert all(found[name] == weight != 0 for name, weight in model.log_variances.items())
    with pytest.raises(ValueError, match=r"than a MultiTaskModel has \(\.log_variances\.animal"):
        mtst.MultiTaskModel.from_pretrained(tmp_path)


@report("fastai/fastai#1084")
def a_class_for_a_callback(_):
    with pytest.raises(TypeError, match=r"is a class; give an object, GradualUnfreezing\(\.\.\.\)"):
        fit(small.model(), callbacks=[mtst.GradualUnfreezing])


@report("Lightning-AI/pytorch-lightning#2636")
def early_stopping_by_a_score_that_is_nan(_):
    stopping = mtst.EarlyStopping("letter macro F1", patience=2)
    with pytest.warns(UserWarning, match="'letter macro F1' is NaN after epoch 0"):
        fit(small.model(), valid=FRAME.assign(letter=None), callbacks=[stopping])


@report("huggingface/transformers#31142")
def early_stopping_by_an_error_takes_the_smallest(_):
    stars = np.random.default_rng(0).normal(size=len(FRAME))
    frame = FRAME.assign(stars=stars)
    torch.manual_seed(0)
    model = mtst.MultiTaskModel(encoder(), [mtst.RegressionTask("stars")])
    stopping = mtst.EarlyStopping("stars mean absolute error", patience=9)
    history = fit(model, frame, frame, epochs=4, callbacks=[stopping])
    errors = history.epochs["valid stars mean absolute error"].to_numpy()
    assert stopping.best_epoch == errors.argmin() != errors.argmax()
    assert not mtst.EarlyStopping("letter macro F1").smaller_is_better
    assert not mtst.EarlyStopping("an error", smaller_is_better=False).smaller_is_better


# Saving, loading


def trains_and_comes_back(model, folder):
    fit(model, checkpoint=folder / "run")
    model.save_pretrained(folder / "model")
    found = mtst.MultiTaskModel.from_pretrained(folder / "model")
    assert found.predict(TEXTS).equals(model.predict(TEXTS))


@report("huggingface/transformers#33807")
def tasks_that_share_a_head(tmp_path):
    model = small.model()
    model.heads["letter"] = model.heads["animal"]
    trains_and_comes_back(model, tmp_path)


@report("huggingface/transformers#28293")
def a_tensor_that_is_not_contiguous(tmp_path):
    model = small.model()
    query = model.encoder.backbone.encoder.layer[0].attention.self.query
    query.weight.data = query.weight.data.t().contiguous().t()
    assert not query.weight.is_contiguous()
    trains_and_comes_back(model, tmp_path)


@report("huggingface/setfit#530")
def a_head_of_ones_own(tmp_path):
    class Deep(mtst.MultiTaskModel):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            for name, task in self.tasks.items():
                layers = torch.nn.Linear(32, 8), torch.nn.ReLU(), torch.nn.Linear(8, task.outputs)
                self.heads[name] = torch.nn.Sequential(*layers)

    model = Deep(encoder(), small.model().tasks.values())
    fit(model)
    model.save_pretrained(tmp_path)
    assert Deep.from_pretrained(tmp_path).predict(TEXTS).equals(model.predict(TEXTS))
    with pytest.raises(
        ValueError, match=r"other heads .* open it with the class that it was saved"
    ):
        mtst.MultiTaskModel.from_pretrained(tmp_path)


@report("tensorflow/tensorflow#36084")
def a_task_that_no_file_can_hold(tmp_path):
    @dataclass(frozen=True)
    class Balanced(mtst.Task):
        balance: object = (1.0, 1.0)

    with pytest.raises(TypeError, match=r"Task 'letter': a JSON file .*Tensor is not JSON seri"):
        Balanced("letter", ("b", "c"), balance=torch.tensor([1.0, 2.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(multitask.KINDS, "Balanced", Balanced)
        model = mtst.MultiTaskModel(encoder(), [Balanced("letter", ("b", "c"), 1.0, (1.0, 2.0))])
        model.save_pretrained(tmp_path)
        task = mtst.MultiTaskModel.from_pretrained(tmp_path).tasks["letter"]
    assert list(task.balance) == [1.0, 2.0]


@report("safetensors/safetensors#762")
def saving_over_the_folder_it_came_from(tmp_path):
    model = small.model()
    expected = model.predict(TEXTS)
    model.save_pretrained(tmp_path)
    again = mtst.MultiTaskModel.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    assert again.predict(TEXTS).equals(expected)
    assert mtst.MultiTaskModel.from_pretrained(tmp_path).predict(TEXTS).equals(expected)


@report("huggingface/diffusers#14719")
def saving_over_weights_in_pieces(tmp_path):
    ours = encoder()
    ours.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    ours.backbone.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found = mtst.SentenceEncoder.from_pretrained(tmp_path)
    assert np.array_equal(found.encode(TEXTS), ours.encode(TEXTS))
    with torch.no_grad():
        found.backbone.embeddings.word_embeddings.weight.mul_(2)
    found.save_pretrained(tmp_path)
    again = mtst.SentenceEncoder.from_pretrained(tmp_path)
    assert np.array_equal(again.encode(TEXTS), found.encode(TEXTS))


@report("huggingface/candle#1888")
def names_of_the_first_bert(tmp_path):
    ours = encoder()
    ours.save_pretrained(tmp_path)
    weights = {"cls.predictions.bias": torch.zeros(64)}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        weights["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = weight + 0.1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1)
    found = mtst.SentenceEncoder.from_pretrained(tmp_path)
    assert np.allclose(found.encode(TEXTS), ours.encode(TEXTS), atol=1e-6)


@report("barissayil/SentimentAnalysis#24")
def a_configuration_that_asks_for_tuples(tmp_path):
    ours = encoder()
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    found = mtst.SentenceEncoder.from_pretrained(tmp_path)
    assert np.array_equal(found.encode(TEXTS), ours.encode(TEXTS))


@report("Socialbird-AILab/BERT-Classification-Tutorial#6")
def labels_in_another_order(tmp_path):
    model = small.model()
    fit(model)
    model.save_pretrained(tmp_path)
    found = mtst.MultiTaskModel.from_pretrained(tmp_path)
    assert [task.labels for task in found.tasks.values()] == [("cat", "other"), ("b", "c")]
    assert found.predict(TEXTS).equals(model.predict(TEXTS))
    with pytest.raises(TypeError, match="labels must be of type tuple or list"):
        mtst.Task("letter", {"b", "c"})  # a set has an order of its own in every process


# Tokens


@report("huggingface/sentence-transformers#744")
def tokens_without_a_vector(_):
    tokenizer = tiny_tokenizer()
    first = 64 - len(tokenizer)  # the one that comes just after the last vector
    tokenizer.add_tokens([f"foo{i}" for i in range(60)])
    ours = encoder(tokenizer)
    message = r"token \d+ is none of the 64 .*resize_token_embeddings\(len\(tokenizer\)\)"
    for word in (f"foo{first}", "foo50"):
        with pytest.raises(ValueError, match=message):
            ours.encode([f"the {word}"])
    ours.backbone.config = copy.deepcopy(ours.backbone.config)  # other tests have the same one
    ours.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert np.isfinite(ours.encode(["the foo50"])).all()


@report("huggingface/transformers#8077")
def positions_that_begin_later(_):
    for kind, options in (
        (CamembertConfig, {}),
        (Data2VecTextConfig, {}),
        (LongformerConfig, {"attention_window": 4}),
    ):
        backbone = AutoModel.from_config(kind(**SIZE | {"pad_token_id": 1} | options)).eval()
        ours = mtst.SentenceEncoder(backbone, tiny_tokenizer(limit=10**9))
        assert ours.max_length == 46
        with pytest.warns(UserWarning, match="1 of 1 sentences are longer than max_length=46"):
            assert np.isfinite(ours.encode(["the " * 100])).all()


@report("pyg-team/pytorch_geometric#9543")
def a_tokenizer_without_a_padding_token(_):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    found = encoder(tokenizer).encode(TEXTS)
    assert np.array_equal(found, encoder().encode(TEXTS))


@report("flairNLP/flair#3230")
def a_sentence_without_a_token(_):
    ours = encoder(without_ends())
    message = "'  ' has no token, and this tokenizer adds none at its ends"
    with pytest.raises(ValueError, match=message):
        ours.encode(["the cat", "  "])
    with pytest.raises(ValueError, match=message):
        fit(
            mtst.MultiTaskModel(ours, [mtst.Task("letter", ("b", "c"))]),
            FRAME.assign(text=["  ", *TEXTS[1:]]),
        )


@report("qdrant/fastembed#716")
def a_tokenizer_that_was_saved_with_padding_and_a_length(_):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    assert np.array_equal(encoder(tokenizer).encode(TEXTS), encoder().encode(TEXTS))


# Around other trainers


@report("huggingface/transformers#21381")
def gradient_checkpointing_above_frozen_layers(_):
    losses = []
    for checkpointing in (False, True):
        model = small.model()
        mtst.unfreeze_top_blocks(model, 1)
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it has another name in newer versions
                model.encoder.backbone.gradient_checkpointing_enable()
        before = copy.deepcopy(model)
        losses.append(fit(model, acceleration=False).loss.to_numpy())
        top = [m.encoder.backbone.encoder.layer[2] for m in (model, before)]
        assert not same_weights(*top)
    assert np.allclose(losses[0], losses[1], atol=1e-6)


@report("huggingface/transformers#33193")
def hugging_face_trainer_evaluates_two_tasks(tmp_path):
    model = small.model()
    ids = model.encoder.tokenize(TEXTS[:10])[0]
    labels = {"animal": 0, "letter": 1}
    rows = [{"input_ids": row, "labels": labels} for row in ids]
    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to=[],
        per_device_eval_batch_size=4,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, eval_dataset=rows, data_collator=model.collate)
    truth = {name: torch.full((10,), label) for name, label in labels.items()}
    with torch.no_grad():
        expected = model.eval()(*model.encoder.collate(ids), truth).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("source", REPORTS)
def test_public_report(source, tmp_path):
    REPORTS[source](tmp_path)
