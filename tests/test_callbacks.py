"""Events of `fit`, early stopping, and what else `fit` takes: a schedule, a clip norm, parts."""

import copy

import numpy as np
import pytest
import small
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import mtst_utils as mtst
from mtst_utils import checkpoints

FRAME = small.frame()
OPTIONS = {"epochs": 3, "batch_size": 8, "precision": "float32", "progress": False}


def fit(model, valid=None, **options):
    return mtst.fit(model, FRAME, valid, **OPTIONS | options)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_every_event_in_order():
    calls = []

    class Watch(mtst.Callback):
        def __getattribute__(self, name):
            if name.startswith(("on_", "before_", "after_")):
                return lambda run: calls.append((name, run.step, run.epoch))
            return super().__getattribute__(name)

    fit(small.model(), FRAME, epochs=2, batch_size=32, callbacks=[Watch()])
    step = [("before_step", "on_step")]
    names = [name for name, _, _ in calls]
    epoch = ["on_epoch", *step[0], *step[0], "after_epoch"]
    assert names == ["on_start", *epoch, *epoch, "on_end"]
    documented = {
        name for name in vars(mtst.Callback) if name.startswith(("on_", "before_", "after_"))
    }
    assert set(names) == documented
    assert calls[0] == ("on_start", 0, 0)
    assert calls[-1] == ("on_end", 4, 1)


def test_a_callback_may_stop_training():
    class Stop(mtst.Callback):
        def on_step(self, run):
            run.stop = run.step == 11

    history = fit(small.model(), FRAME, callbacks=[Stop()])
    assert history.step.tolist() == list(range(1, 12))
    assert history.epochs.step.tolist() == [8, 11]  # and is validated where it stops


class Scores(mtst.Callback):
    """Puts scores in the place of validation's, and keeps the weights of every epoch."""

    def __init__(self, scores):
        self.scores, self.kept = scores, []

    def after_epoch(self, run):
        run.history[-1]["valid animal macro F1"] = self.scores[run.epoch]
        self.kept.append(weights(run.model))


def test_early_stopping_keeps_the_best_epoch():
    model, scores = small.model(), Scores([0.5, 0.7, 0.6, 0.7, 0.8])
    history = fit(model, FRAME, epochs=5, callbacks=[scores, mtst.EarlyStopping("animal macro F1")])
    assert len(history) == 4 * 8  # epochs 2 and 3 were no better than epoch 1
    assert same(model.state_dict(), scores.kept[1])


def test_errors_are_better_when_smaller():
    model, scores = small.model(), Scores([0.5, 0.4, 0.6, 0.9])
    stopping = mtst.EarlyStopping("animal macro F1", patience=1, smaller_is_better=True)
    assert len(fit(model, FRAME, epochs=4, callbacks=[scores, stopping])) == 3 * 8
    assert same(model.state_dict(), scores.kept[1])


@pytest.mark.parametrize("at", [1, 2, 3])
def test_early_stopping_goes_on_from_a_checkpoint(tmp_path, monkeypatch, at):
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", float("-inf"))
    armed = [at]

    class Interrupt(mtst.Callback):
        def on_epoch(self, run):
            if armed == [run.epoch]:
                raise KeyboardInterrupt

    def callbacks():
        return [
            Scores([0.5, 0.7, 0.6, 0.7, 0.8]),
            mtst.EarlyStopping("animal macro F1"),
            Interrupt(),
        ]

    model, whole, again = (small.model() for _ in range(3))
    options = {"epochs": 5, "batch_size": 32}  # two steps an epoch
    with pytest.raises(KeyboardInterrupt):
        fit(model, FRAME, callbacks=callbacks(), checkpoint=tmp_path, **options)
    armed.clear()
    expected = fit(whole, FRAME, callbacks=callbacks(), **options)
    history = fit(again, FRAME, callbacks=callbacks(), checkpoint=tmp_path, **options)
    assert history.step.tolist() == expected.step.tolist()
    assert same(whole.state_dict(), again.state_dict())


def test_early_stopping_says_what_it_needs():
    with pytest.raises(ValueError, match="needs validation sentences"):
        fit(small.model(), callbacks=[mtst.EarlyStopping("animal macro F1")])
    with pytest.raises(ValueError, match=r"metric must be one of \['animal accuracy', .*got 'f1'"):
        fit(small.model(), FRAME, callbacks=[mtst.EarlyStopping("f1")])
    with pytest.raises(ValueError, match="patience must be a whole number of epochs, 1 or more"):
        mtst.EarlyStopping("animal macro F1", patience=0)


def test_parts_of_a_batch_add_up_to_it():
    """Gradient accumulation: less memory, the same losses and weights, few labels in a task
    included.
    """
    frame = FRAME.copy()
    frame.loc[frame.index % 5 != 0, "letter"] = None
    results = []
    for parts in (1, 3, 100):
        model = small.model(dropout=0)
        history = mtst.fit(model, frame, **OPTIONS | {"epochs": 1, "parts": parts})
        results.append((history, torch.cat([p.detach().flatten() for p in model.parameters()])))
    for history, flat in results[1:]:
        assert history.loss.to_numpy() == pytest.approx(results[0][0].loss.to_numpy(), abs=1e-5)
        assert torch.allclose(flat, results[0][1], atol=1e-4)


def test_a_schedule_of_ones_own():
    rates = []

    class Watch(mtst.Callback):
        def on_step(self, run):
            rates.append(run.optimizer.param_groups[0]["lr"])

    model = small.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"optimizer": optimizer, "callbacks": [Watch()], "epochs": 1}
    fit(model, scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, steps), **options)
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * (i + 1) / 8)) for i in range(8)])
    rates.clear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constant = {"scheduler": lambda optimizer, steps: LambdaLR(optimizer, lambda step: 1.0)}
    fit(model, **options | {"optimizer": optimizer} | constant)
    assert rates == [0.1] * 8
    with pytest.raises(ValueError, match=r"on top of a LambdaLR.*got CosineAnnealingLR"):
        fit(
            model,
            scheduler=lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
            callbacks=[mtst.GradualUnfreezing()],
        )


def test_the_gradient_is_cut_to_the_clip_norm():
    moved = []
    for clip_norm in (1e-3, 1e3):
        model = small.model()
        before = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        constant = {"scheduler": lambda optimizer, steps: LambdaLR(optimizer, lambda step: 1.0)}
        fit(model, epochs=1, batch_size=64, optimizer=optimizer, clip_norm=clip_norm, **constant)
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        moved.append(sum((a - b).square().sum() for a, b in pairs).sqrt().item())
    assert moved[0] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1] > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0}, "clip_norm must be a number above 0; got 0"),
        ({"parts": 0}, "parts must be a whole number of 1 or more; got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        fit(small.model(), **options)
