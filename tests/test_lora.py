"""LoRA by peft, end to end: rates, training, unfreezing, saving merged, sentence-transformers."""

import copy

import pytest
import small
import torch
from peft import LoraConfig

import mtst_utils as mtst

FRAME = small.frame()
TEXTS = FRAME.text.tolist()


@pytest.fixture
def model():
    model = small.model()
    torch.manual_seed(0)
    model.encoder.backbone.add_adapter(LoraConfig(r=4, target_modules=["query", "value"]))
    return model


def fit(model, **options):
    options = {"epochs": 4, "batch_size": 8, "precision": "float32", "progress": False} | options
    return mtst.fit(model, FRAME, **options)


def base_of(model):
    return {n: p.detach().clone() for n, p in model.encoder.named_parameters() if "lora" not in n}


def test_rates_are_those_of_the_blocks(model):
    table = mtst.lr_table(mtst.layerwise_lr_groups(model, 1e-3, 0.5)).set_index("name")
    assert table.lr.to_dict() == {
        "block 0": 2.5e-4,
        "block 1": 5e-4,
        "block 2": 1e-3,
        "heads": 1e-3,
    }
    assert table.parameters["block 0"] == 2 * 2 * 4 * 32


@pytest.mark.parametrize("callbacks", [[], [mtst.GradualUnfreezing(0.2, 0.6, base_lr=1e-3)]])
def test_adapters_learn_and_the_base_stays(model, callbacks):
    before, adapters = base_of(model), copy.deepcopy(model.state_dict())
    fit(model, callbacks=callbacks)
    assert all(torch.equal(p, before[n]) for n, p in base_of(model).items())
    learned = [n for n, p in model.state_dict().items() if not torch.equal(p, adapters[n])]
    assert len([n for n in learned if "lora" in n]) == 3 * 2 * 2
    assert {n for n in learned if "lora" not in n} == {
        f"heads.{t}.{p}" for t in model.tasks for p in ("weight", "bias")
    }


def test_interrupted_training_goes_on_exactly(model, tmp_path):
    whole, second = copy.deepcopy(model), copy.deepcopy(model)
    armed = [True]

    class Interrupt:
        def on_epoch(self, run):
            if run.epoch == 2 and armed:
                raise KeyboardInterrupt

    fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(model, checkpoint=tmp_path, callbacks=[Interrupt()])
    armed.clear()
    fit(second, checkpoint=tmp_path, callbacks=[Interrupt()])
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True)
    )
