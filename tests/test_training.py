"""fit, evaluate, checkpoints: what is learned, what is repeatable, what survives."""

import io
import json
import random
import resource

import killed
import numpy as np
import pandas as pd
import pytest
import small
import torch
import two_processes
from forked import run_forked

import mtst_utils as mtst
from mtst_utils import checkpoints
from mtst_utils.frames import bucketed_batches
from mtst_utils.learning_rates import default_optimizer

FRAME = small.frame()


def fit(model, **options):
    options = {"epochs": 2, "batch_size": 8, "precision": "float32", "progress": False} | options
    return mtst.fit(model, options.pop("train", FRAME), options.pop("valid", None), **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_both_tasks_are_learned():
    model = small.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = fit(model, valid=FRAME, epochs=12, optimizer=optimizer)
    assert history.epochs["valid animal accuracy"].iloc[-1] > 0.95
    assert history.epochs["valid letter accuracy"].iloc[-1] > 0.95
    assert not model.training


def test_history():
    history = fit(small.model(), valid=FRAME)
    assert isinstance(history, mtst.History)
    assert history.step.tolist() == list(range(1, 17))
    assert history.epoch.tolist() == [0] * 8 + [1] * 8
    assert np.allclose(history["animal loss"] + history["letter loss"], history["loss"])
    assert len(history.epochs) == 2
    assert history.epochs.step.tolist() == [8, 16]
    assert [name for name in history if name.startswith("valid")] == [
        f"valid {task} {score}"
        for task in ("animal", "letter")
        for score in ("accuracy", "macro F1")
    ]
    assert len(fit(small.model()).epochs) == 0  # no validation, no scores


def test_same_seed_same_weights_other_seed_others():
    models = [small.model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(model, seed=seed)
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_other_seeds_draw_other_numbers():
    drawn = []
    for seed in (0, 2, 4):
        mtst.seed_everything(seed)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert all(len(set(numbers)) == 3 for numbers in zip(*drawn, strict=True))


def test_dropout_is_seeded_anew_in_every_step():
    seeds = []

    class Watch:
        def on_step(self, run):
            seeds.append(torch.initial_seed())

    for seed in (0, 1):
        fit(small.model(), seed=seed, callbacks=[Watch()])
    assert len(set(seeds)) == len(seeds) == 32


def test_defaults_of_what_enters_the_losses():
    histories = []
    for options in ({}, {"clip_norm": 1.0, "parts": 1}):
        base = small.model()
        heavy = mtst.Task("animal", ("cat", "other"), weight=100)  # long gradients
        model = mtst.MultiTaskModel(base.encoder, [heavy])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        histories.append(fit(model, optimizer=optimizer, **options))
    assert histories[0].equals(histories[1])


class Counted(mtst.MultiTaskModel):
    calls = 0

    def forward(self, *inputs, labels=None):
        Counted.calls += labels is not None
        return super().forward(*inputs, labels=labels)


def test_parts_are_forward_passes_of_their_own(monkeypatch):
    monkeypatch.setattr(Counted, "calls", 0)
    fit(Counted(small.model().encoder, small.model().tasks.values()), epochs=1, parts=2)
    assert Counted.calls == 2 * 8


def test_nothing_is_printed_without_progress(capsys):
    fit(small.model(), epochs=1)
    assert capsys.readouterr() == ("", "")


def test_validation_has_the_precision_of_the_training(monkeypatch):
    asked, scored = [], mtst.training.scored
    monkeypatch.setattr(
        mtst.training,
        "scored",
        lambda model, frame, precision: asked.append(precision) or scored(model, frame),
    )
    fit(small.model(), valid=FRAME, precision="bfloat16", epochs=1)
    assert asked == ["bfloat16"]


def test_an_optimizer_of_another_model_is_refused_before_the_first_step():
    model, seen = small.model(), []

    class Watch:
        def on_step(self, run):
            seen.append(run.step)

    optimizer = torch.optim.SGD(small.model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer: it holds no parameter of this model"):
        fit(model, optimizer=optimizer, callbacks=[Watch()])
    assert seen == []


def test_a_total_that_is_not_a_number_is_called_the_total():
    class Broken(mtst.MultiTaskModel):
        def total_loss(self, losses):
            return super().total_loss(losses) / 0

    model = Broken(small.model().encoder, small.model().tasks.values())
    with pytest.raises(FloatingPointError, match="step 1 of 16: the total loss is inf"):
        fit(model)


@pytest.mark.parametrize("name", ["loss", "losses"])
def test_a_forward_without_a_loss_is_named(name):
    class Silent(mtst.MultiTaskModel):
        def forward(self, *inputs, labels=None):
            output = super().forward(*inputs, labels=labels)
            setattr(output, name, None)
            return output

    model = Silent(small.model().encoder, small.model().tasks.values())
    with pytest.raises(TypeError, match="returned no loss or losses"):
        fit(model)


def test_every_parameter_with_a_gradient_moves():
    # Peers have dropped the embeddings from the optimizer, or called no_grad inside forward.
    model = small.model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model)
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {"encoder.backbone.pooler.dense.weight", "encoder.backbone.pooler.dense.bias"}


def test_default_rates_start_low_and_end_at_zero():
    rates = []

    class Watch:
        def on_start(self, run):
            rates.append(run.optimizer.param_groups[-1]["lr"])

        def on_step(self, run):
            rates.append(run.optimizer.param_groups[-1]["lr"])

    fit(small.model(), epochs=5, callbacks=[Watch()])
    assert rates[-1] == 0
    assert rates[0] == pytest.approx(1e-3 / 4)  # warm-up: 4 of 40 steps
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) == 3


def test_callbacks_are_called_in_order():
    calls = []

    class Watch:
        def on_start(self, run):
            calls.append(("start", run.step))

        def on_epoch(self, run):
            calls.append(("epoch", run.epoch))

        def on_step(self, run):
            calls.append(("step", run.step, len(run.history)))

    fit(small.model(), batch_size=32, callbacks=[Watch()])
    assert calls == [
        ("start", 0),
        ("epoch", 0),
        ("step", 1, 1),
        ("step", 2, 2),
        ("epoch", 1),
        ("step", 3, 3),
        ("step", 4, 4),
    ]


class Interrupt:
    """The same callback for the checkpoint, whenever it interrupts."""

    step = None

    def on_step(self, run):
        if run.step == Interrupt.step:
            raise KeyboardInterrupt


@pytest.fixture
def interrupt_at():
    def at(step):
        Interrupt.step = step

    yield at
    Interrupt.step = None


@pytest.mark.parametrize("step", [1, 8, 11])
def test_interrupted_training_goes_on_exactly(tmp_path, monkeypatch, step, interrupt_at, caplog):
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", float("-inf"))  # after every step
    whole = small.model()
    expected = fit(whole, valid=FRAME)
    interrupt_at(step + 1)
    with pytest.raises(KeyboardInterrupt):
        fit(small.model(), valid=FRAME, checkpoint=tmp_path, callbacks=[Interrupt()])
    interrupt_at(None)
    again = small.model()
    assert not caplog.text
    history = fit(again, valid=FRAME, checkpoint=tmp_path, callbacks=[Interrupt()])
    assert f"fit goes on from step {step} of 16" in caplog.text
    assert torch.equal(weights(again), weights(whole))
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    interrupt_at(17)
    finished = small.model()  # a finished run is not trained again
    fit(finished, valid=FRAME, checkpoint=tmp_path, callbacks=[Interrupt()])
    assert torch.equal(weights(finished), weights(whole))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed"),
        ({"epochs": 3}, "epochs, scheduler"),
        ({"batch_size": 16}, "batch_size, scheduler"),
        ({"train": FRAME.assign(letter="b")}, "training data"),
        ({"train": FRAME[:-1]}, "training data"),
        ({"valid": FRAME}, "validation data"),
        ({"callbacks": [mtst.GradualUnfreezing()]}, "callbacks"),
        ({"clip_norm": 0.5}, "clip_norm"),
        ({"parts": 2}, "parts"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    fit(small.model(), checkpoint=tmp_path)
    with pytest.raises(ValueError, match=f"is of another run .{named} differ"):
        fit(small.model(), checkpoint=tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: setattr(model.encoder, "pooling", "cls"), "encoder"),
        (lambda model: setattr(model.encoder, "max_length", 20), "encoder"),
        (lambda model: setattr(model.dropout, "p", 0.2), "dropout"),
        (lambda model: torch.nn.init.ones_(model.heads["letter"].weight), "starting weights"),
        (lambda model: mtst.freeze(model.heads["letter"]), "what is frozen, optimizer"),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path, change, named):
    """A loop over poolings, heads' seeds or dropouts, with one folder, gave the first one's weights
    for all.
    """
    fit(small.model(), checkpoint=tmp_path)
    model = small.model()
    change(model)
    with pytest.raises(ValueError, match=f"is of another run .{named} differ"):
        fit(model, checkpoint=tmp_path)


def test_another_setting_of_a_callback_is_another_run(tmp_path):
    fit(small.model(), checkpoint=tmp_path, callbacks=[mtst.GradualUnfreezing(0.2, 0.6)])
    with pytest.raises(ValueError, match="is of another run .callbacks differ"):
        fit(small.model(), checkpoint=tmp_path, callbacks=[mtst.GradualUnfreezing(0.2, 0.7)])


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    fit(small.model(), checkpoint=tmp_path)
    model = small.model()
    with pytest.raises(ValueError, match="optimizer differ"):
        fit(model, checkpoint=tmp_path, optimizer=default_optimizer(model, base_lr=1e-5))


def test_half_written_checkpoint_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    fit(small.model(), checkpoint=tmp_path)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.new").write_bytes(good[: len(good) // 2])  # what a kill leaves
    model = small.model()
    fit(model, checkpoint=tmp_path)  # the whole one is found: nothing is trained
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


@pytest.mark.parametrize(
    "damage", ["cut", "altered", "empty", "another file", "another file of torch's"]
)
def test_damaged_checkpoint_says_what_to_do(tmp_path, damage):
    fit(small.model(), checkpoint=tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole, of_torch = path.read_bytes(), io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, of_torch)
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "altered": b"x" * 99 + whole[99:],
            "empty": b"",
            "another file": b"{}",
            "another file of torch's": of_torch.getvalue(),
        }[damage]
    )
    with pytest.raises(
        ValueError, match=r"checkpoint.pt is damaged .*: delete it, and the run begins anew"
    ):
        fit(small.model(), checkpoint=tmp_path)
    path.unlink()
    fit(small.model(), checkpoint=tmp_path)


def test_what_no_checkpoint_holds_does_not_end_the_training(tmp_path):
    class Words(mtst.Callback):
        def state_dict(self):
            return {"note": "a word"}

    expected, model = small.model(), small.model()
    fit(expected)
    with pytest.warns(UserWarning, match="could not be written at step .*training goes on"):
        fit(model, checkpoint=tmp_path, callbacks=[Words()])
    assert torch.equal(weights(model), weights(expected))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    """The second of two checkpoints cannot be written: the first stays whole, training ends as it
    would have.
    """
    expected, model, calls = small.model(), small.model(), []
    fit(expected)
    real = torch.save

    def save(state, path):
        calls.append(path)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            real(state, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(torch, "save", save)
    with pytest.warns(UserWarning, match=r"could not be written at step 16 .*training goes on"):
        fit(model, checkpoint=tmp_path)
    assert torch.equal(weights(model), weights(expected))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    again, steps, real_step = small.model(), [], mtst.training.step
    with monkeypatch.context() as patch:
        patch.setattr(
            mtst.training,
            "step",
            lambda run, batch: steps.append(run.step + 1) or real_step(run, batch),
        )
        fit(again, checkpoint=tmp_path)
    assert steps[0] == 9  # the first epoch's checkpoint was there
    assert torch.equal(weights(again), weights(expected))


def test_ten_kills_and_the_same_weights(tmp_path):
    [report] = run_forked(killed.train_and_kill, tmp_path)
    assert report["kills"] == 10
    assert report["same weights"]
    assert len(set(report["steps at the kills"])) > 3  # they fell at different moments
    assert max(report["steps at the kills"]) < report["steps"]


def test_two_processes_give_the_losses_of_one(tmp_path):
    expected = two_processes.losses()  # in this one process
    run_forked(two_processes.launch, two_processes.write_losses, tmp_path)
    found = json.loads((tmp_path / "losses.json").read_text())
    assert found["processes"] == 2  # `accelerate launch --cpu` starts one, whatever it is told
    for name in ("everything", "gradual", "few labels", "in parts", "in uneven parts"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4)
    assert expected["everything"] != expected["gradual"]


def test_a_model_in_pieces_is_refused_in_every_process(tmp_path):
    run_forked(two_processes.launch, two_processes.write_refusals, tmp_path)
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            assert f"unset ACCELERATE_USE_{kind}" in told[kind]
            assert told[f"{kind}: as before"]


def test_in_two_processes_what_a_forward_sets_on_the_model_stays(tmp_path):
    run_forked(two_processes.launch, two_processes.write_calls, tmp_path)
    for rank in (0, 1):
        calls, steps, finite, seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert calls == steps == 24
        assert finite
        assert seen == 64  # each sentence once in all three epochs: the cache is filled, and kept


def test_two_processes_that_find_different_checkpoints_say_so(tmp_path):
    """As on two hosts that share no folder: they would go on from different steps, and wait."""
    run_forked(two_processes.launch, two_processes.write_disagreement, tmp_path)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [text.partition(", and others are not")[0] for text in told] == [
        f"checkpoint: this process is at step {step}" for step in (2, 0)
    ]


class Kendall(mtst.MultiTaskModel):
    """Learned weights, whose total has a term that is no task's loss."""

    def __init__(self, *args):
        super().__init__(*args)
        self.log_variances = torch.nn.Parameter(torch.full((2,), 0.3))

    def total_loss(self, losses):
        pairs = zip(self.log_variances, losses.values(), strict=True)
        return sum((-s).exp() * value + s for s, value in pairs)


class Small(mtst.MultiTaskModel):
    """A loss under a name of its own."""

    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        if output.losses is not None:
            output.losses["size"] = output.embeddings.square().mean()
            output.loss = output.loss + output.losses["size"]
        return output


@pytest.mark.parametrize("kind", [Kendall, Small])
def test_parts_of_a_batch_add_up_whatever_the_total_is(kind):
    last = []
    for parts in (1, 2, 4):
        plain = small.model(dropout=0)
        model = kind(plain.encoder, plain.tasks.values())
        model.heads = plain.heads
        options = {"epochs": 2, "batch_size": 8, "precision": "float32", "progress": False}
        last.append(mtst.fit(model, small.frame(), parts=parts, **options).loss.iloc[-1])
    assert last == pytest.approx([last[0]] * 3, abs=1e-4)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    """Whose weights are of the same shapes: more, and narrower, heads of attention."""
    options = {"epochs": 1, "batch_size": 8, "checkpoint": tmp_path, "progress": False}
    mtst.fit(small.model(), small.frame(), **options)
    other = small.model()
    other.encoder.backbone.config.num_attention_heads *= 2
    with pytest.raises(ValueError, match=r"is of another run \(architecture differ\)"):
        mtst.fit(other, small.frame(), **options)


ROOT = __file__.rpartition("/tests/")[0]


def test_batches_cover_everything_once_and_are_of_like_length():
    lengths = np.random.default_rng(0).integers(3, 60, 1000).tolist()
    batches = bucketed_batches(lengths, 32, seed=(0, 0))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    assert all(len(batch) == 32 for batch in batches if len(batch) != 1000 % 32)
    spread = np.mean([max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches])
    assert spread < 5  # at random it would be about 54
    assert batches == bucketed_batches(lengths, 32, seed=(0, 0))
    assert batches != bucketed_batches(lengths, 32, seed=(0, 1))
    assert bucketed_batches([3] * 9, 4, size=2) == [
        b for b in bucketed_batches([3] * 9, 4) if len(b) > 1
    ]


def test_evaluate(tiny_encoder):
    class Fixed(mtst.MultiTaskModel):
        def probabilities(self, sentences, precision="auto"):
            return {"mood": np.eye(3)[[0, 0, 1, 1, 0, 2]], "domain": np.eye(2)[[0, 0, 0, 1, 1, 1]]}

    model = Fixed(
        tiny_encoder, [mtst.Task("mood", ("bad", "so", "good")), mtst.Task("domain", ("x", "y"))]
    )
    frame = pd.DataFrame(
        {
            "text": list("abcdef"),
            "mood": ["bad", "so", "so", "so", None, "good"],
            "domain": ["x", "x", "x", "y", "y", "y"],
        }
    )
    table = mtst.evaluate(model, frame).set_index("task")
    assert table.loc["mood", ["n", "accuracy"]].tolist() == [5, 0.8]
    # bad: 1 right of 2 said and 1 true (F1 2/3); so: 2 right of 2 said and 3 true (.8); good: 1
    assert table.loc["mood", "macro F1"] == pytest.approx((2 / 3 + 0.8 + 1) / 3)
    assert table.loc["domain", "accuracy"] == 1
    assert list(table) == ["n", "accuracy", "macro F1"]
    table = mtst.evaluate(model, frame, by="domain")
    assert table[table.domain.isna()].n.tolist() == [5, 6]
    assert table.set_index(["task", "domain"]).loc[("mood", "y"), "n"] == 2
    assert len(table) == 1 + 3  # a task is not divided by its own labels


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME[:0], "the frame has no rows"),
        (FRAME.drop(columns="text"), "no column 'text'; it has 'animal', 'letter'"),
        (FRAME[["text"]], r"none of the tasks \['animal', 'letter'\]"),
        (FRAME.assign(letter="z"), "task 'letter', row 0: 'z' is not one of its labels"),
    ],
)
def test_bad_frames(frame, message):
    with pytest.raises(ValueError, match=message):
        fit(small.model(), train=frame)
    with pytest.raises(ValueError, match=message):
        mtst.evaluate(small.model(), frame)


def test_text_that_is_none_is_named():
    with pytest.raises(
        TypeError, match=r"text\[2\] must be a string; got (nan of type float|None)"
    ):
        fit(small.model(), train=FRAME.assign(text=[*FRAME.text[:2], None, *FRAME.text[3:]]))


def test_sentences_that_are_cut_are_counted():
    with pytest.warns(UserWarning, match="2 of 64 sentences are longer than max_length=40 tokens"):
        fit(
            small.model(),
            train=FRAME.assign(text=["a " * 90, "b " * 90, *FRAME.text[2:]]),
            epochs=1,
        )


# on its own: mutation testing puts frames of its own between
def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="1 of 64 sentences") as caught:
        fit(small.model(), train=FRAME.assign(text=["a " * 90, *FRAME.text[1:]]), epochs=1)
    assert caught[0].filename == __file__


def test_unlabelled_task_leaves_its_head_alone():
    model = small.model()
    before = model.heads["letter"].weight.detach().clone()
    fit(model, train=FRAME.drop(columns="letter"))
    assert torch.equal(model.heads["letter"].weight, before)
