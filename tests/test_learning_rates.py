"""Layer-wise rates: the closed form, every parameter once, and schedules that keep the ratios."""

import copy
import warnings

import pytest
import torch
from conftest import CONFIGS, tiny_backbone, tiny_tokenizer
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import default_collate
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

import mtst_utils as mtst
from mtst_utils.layers import layer_stack

TASKS = [mtst.Task("domain", ("x", "y")), mtst.Task("sentiment", ("bad", "good"))]


def model(kind="bert"):
    return mtst.MultiTaskModel(mtst.SentenceEncoder(tiny_backbone(kind), tiny_tokenizer()), TASKS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_parameter_in_exactly_one_group_at_the_closed_form(kind):
    net = model(kind)
    groups = mtst.layerwise_lr_groups(net, base_lr=1e-4, decay=0.9, head_lr=1e-3)
    placed = [id(p) for group in groups for p in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in net.parameters()}
    rates = {group["layer"]: group["lr"] for group in groups}
    assert [group["name"] for group in groups[:2]] == ["embeddings", "embeddings, no weight decay"]
    expected = {
        "embeddings": 1e-4 * 0.9**3,
        "block 0": 1e-4 * 0.9**2,
        "block 1": 9e-5,
        "block 2": 1e-4,
        "heads": 1e-3,
    }
    assert rates == pytest.approx(expected, rel=1e-12)
    assert list(rates) == list(expected)  # from the input up


def test_reference_setting():
    config = type(CONFIGS["mpnet"])(**{**CONFIGS["mpnet"].to_dict(), "num_hidden_layers": 12})
    encoder = mtst.SentenceEncoder(type(tiny_backbone("mpnet"))(config), tiny_tokenizer())
    rates = mtst.lr_table(mtst.layerwise_lr_groups(mtst.MultiTaskModel(encoder, TASKS))).set_index(
        "name"
    )["lr"]
    assert rates["block 11"] == 1e-4
    assert rates["block 0"] == pytest.approx(5.69e-5, abs=1e-7)
    assert rates["embeddings"] == pytest.approx(5.40e-5, abs=1e-7)
    assert rates["heads"] == 1e-4


def test_weight_decay_spares_vectors_only():
    net = model("mpnet")
    decayed = {
        id(p) for g in mtst.layerwise_lr_groups(net) if g["weight_decay"] > 0 for p in g["params"]
    }
    for name, parameter in net.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name
    # By the letters of its name, MPNet's table of positions would be taken for a bias.
    assert id(net.encoder.backbone.encoder.relative_attention_bias.weight) in decayed


def test_a_table_of_groups_made_by_hand():
    group = {"params": [torch.zeros(2, 3), torch.zeros(3)], "layer": "heads", "lr": 0.1}
    rows = mtst.lr_table([group]).to_dict("records")
    assert rows == [{"name": "heads", "lr": 0.1, "parameters": 9}]


def test_frozen_parameters_are_left_out():
    net = model()
    net.encoder.backbone.embeddings.requires_grad_(False)
    groups = mtst.layerwise_lr_groups(net)
    assert "embeddings" not in {group["layer"] for group in groups}
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_ratios_stay_through_warmup_and_decay():
    optimizer = torch.optim.AdamW(mtst.layerwise_lr_groups(model(), decay=0.8, head_lr=1e-3))
    schedule = mtst.warmup_linear(optimizer, 50)
    first, peaks = None, []
    for _ in range(50):
        rates = torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64)
        peaks.append(rates[0].item())
        first = rates / rates[0] if first is None else first
        assert torch.allclose(rates / rates[0], first, rtol=1e-9, atol=0)
        optimizer.step()
        schedule.step()
    assert peaks.index(max(peaks)) == 4  # five steps of warm-up
    assert peaks[0] == pytest.approx(max(peaks) / 5)
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_single_step_is_taken_at_the_whole_rate():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    mtst.warmup_linear(optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == 0.1


SCHEDULES = {
    "warm-up": lambda optimizer: mtst.warmup_linear(optimizer, 40),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 45),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=45
    ),
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "transformers": lambda optimizer: get_linear_schedule_with_warmup(optimizer, 5, 45),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_and_any_scheduler_keep_the_ratios(kind, schedule):
    optimizer = kind(mtst.layerwise_lr_groups(model(), 1e-3, 0.8, head_lr=1e-2))
    ratios = (
        torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64) / 1e-2
    )
    schedule, seen = SCHEDULES[schedule](optimizer), set()
    for _ in range(39):
        rates = torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64)
        if rates[-1] > 0:
            torch.testing.assert_close(rates / rates[-1], ratios, rtol=1e-9, atol=0)
        seen.add(rates[-1].item())
        optimizer.step()
        schedule.step()
    assert len(seen) > 20  # the rates did change


def test_one_step_moves_a_layer_by_its_rate():
    """Plain gradient descent: the step is the rate times the gradient, whatever the group says it
    is called.
    """
    net = model()
    optimizer = torch.optim.SGD(
        mtst.layerwise_lr_groups(net, 1e-2, 0.5, head_lr=0.1, weight_decay=0)
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    ids = torch.tensor([[2, 5, 6, 3]])
    net(
        ids, torch.ones_like(ids), {"domain": torch.tensor([0]), "sentiment": torch.tensor([1])}
    ).loss.backward()
    optimizer.step()
    depth = layer_stack(net.encoder.backbone).depth_of
    for name, p in net.named_parameters():
        if p.grad is None:
            assert "pooler" in name  # after the last block, and unused under mean pooling
            continue
        rate = (
            1e-2 * 0.5 ** (3 - depth[name.removeprefix("encoder.backbone.")])
            if "encoder" in name
            else 0.1
        )
        torch.testing.assert_close(before[name] - p, rate * p.grad, rtol=1e-4, atol=1e-7)


def test_a_scale_in_the_group_does_nothing():
    # timm's way: torch's schedulers know nothing of the key lr_scale, so the rate itself must be in
    # the group.
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 1.0, "lr_scale": 0.1}])
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == -1
    assert not any("lr_scale" in group for group in mtst.layerwise_lr_groups(model()))


class TestSlipsOfOthers:
    """How other implementations count, or fail to (FACTS: ELECTRA, BEiT and timm, Sun, Zhang,
    public solutions).
    """

    rates = staticmethod(
        lambda: dict(
            mtst.lr_table(mtst.layerwise_lr_groups(model(), 1e-4, 0.5)).set_index("name").lr
        )
    )

    def test_the_top_block_has_the_base_rate(
        self,
    ):  # ELECTRA: decay squared (its issue 51); BEiT, timm, Zhang: decay
        assert self.rates()["block 2"] == 1e-4

    def test_the_embeddings_are_slower_than_the_lowest_block(
        self,
    ):  # Sun et al.: undecayed, faster than all
        assert self.rates()["embeddings"] == self.rates()["block 0"] / 2

    def test_not_upside_down(self):  # three of four public solutions let the bottom learn fastest
        rates = [self.rates()[name] for name in ("embeddings", "block 0", "block 1", "block 2")]
        assert rates == sorted(rates)
        assert len(set(rates)) == 4

    def test_unknown_parts_raise(
        self,
    ):  # BEiT, timm: whatever is unknown falls silently to the head, at the full rate
        net = model()
        net.encoder.backbone.adapter = nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"no stated place: 'adapter\.weight'"):
            mtst.layerwise_lr_groups(net)

    def test_nothing_is_dropped(
        self,
    ):  # Zhang et al., public solutions: parts outside the blocks never learn
        net = model()
        net.own = nn.Linear(2, 2)
        held = {id(p) for group in mtst.layerwise_lr_groups(net) for p in group["params"]}
        assert held == {id(p) for p in net.parameters()}

    def test_a_decay_of_2_6(self):  # ULMFiT divides by 2.6 from group to group: the same rule
        rates = mtst.lr_table(mtst.layerwise_lr_groups(model(), 1e-4, 1 / 2.6)).lr
        assert (rates[1:4].to_numpy() / rates[:3].to_numpy()).tolist() == pytest.approx(
            [2.6] * 3, rel=1e-12
        )


def test_tied_weights_are_in_one_group():
    net = BertForMaskedLM(CONFIGS["bert"])  # its output layer is the table of words
    assert net.cls.predictions.decoder.weight is net.bert.embeddings.word_embeddings.weight
    groups = mtst.layerwise_lr_groups(net, decay=0.5)
    where = [
        group["layer"]
        for group in groups
        for p in group["params"]
        if p is net.cls.predictions.decoder.weight
    ]
    assert where == ["embeddings"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch only warns of a parameter that is twice in a group
        torch.optim.AdamW(groups)


def test_shared_blocks_are_in_one_group():
    config = type(CONFIGS["albert"])(**{**CONFIGS["albert"].to_dict(), "num_hidden_groups": 1})
    backbone = type(tiny_backbone("albert"))(config)  # three blocks deep, one set of weights
    table = mtst.lr_table(mtst.layerwise_lr_groups(backbone))
    assert table.name.tolist() == ["embeddings", "block 0"]
    assert table.parameters.sum() == sum(p.numel() for p in backbone.parameters())


@pytest.mark.parametrize(
    "wrap", [lambda net: net.bert, lambda net: net, lambda net: nn.Sequential(net, nn.Linear(2, 2))]
)
def test_models_of_others(wrap):
    """A bare backbone, a Hugging Face model with its own head, and a module of one's own around
    it.
    """
    torch.manual_seed(0)
    net = wrap(BertForSequenceClassification(CONFIGS["bert"]))
    table = mtst.lr_table(mtst.layerwise_lr_groups(net, 1e-4, 0.9, head_lr=1e-3)).set_index("name")
    assert table.lr["block 2"] == 1e-4  # the pooler comes after the last block, and learns as fast
    assert table.parameters["block 2"] > table.parameters["block 1"]
    assert table.parameters.sum() == sum(p.numel() for p in net.parameters())
    assert ("heads" in table.index) == (not isinstance(net, BertModel))


def test_two_transformers_or_none():
    pair = nn.ModuleList([tiny_backbone("bert"), tiny_backbone("mpnet")])
    with pytest.raises(ValueError, match=r"holds 2 transformers \(BertModel, MPNetModel\)"):
        mtst.layerwise_lr_groups(pair)
    with pytest.raises(ValueError, match="unknown architecture 'Linear'"):
        mtst.layerwise_lr_groups(nn.Linear(2, 2))


def test_hugging_face_trainer(tmp_path):
    """The groups go into Trainer(optimizers=...): its own scheduler calls keep the ratios, and
    every layer moves.
    """
    net = model().eval()
    optimizer = torch.optim.SGD(
        mtst.layerwise_lr_groups(net, 1e-2, 0.5, head_lr=1e-1, weight_decay=0)
    )
    schedule = mtst.warmup_linear(optimizer, 4)
    expected, seen = [group["lr"] for group in optimizer.param_groups], []

    class See(TrainerCallback):
        def on_step_end(self, arguments, state, control, **_):
            seen.append([group["lr"] for group in optimizer.param_groups])

    class Rows(list):
        def __getitem__(self, i):
            return {
                "input_ids": torch.tensor([2, 5 + i, 3]),
                "attention_mask": torch.ones(3, dtype=torch.long),
                "labels": {"domain": torch.tensor(i % 2), "sentiment": torch.tensor(1)},
            }

    arguments = TrainingArguments(
        tmp_path,
        max_steps=4,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    before = [p.detach().clone() for p in net.parameters()]
    Trainer(
        net,
        arguments,
        data_collator=default_collate,
        train_dataset=Rows(range(8)),
        optimizers=(optimizer, schedule),
        callbacks=[See()],
    ).train()
    assert len(seen) == 4
    for rates in seen[:-1]:  # the last step ends at 0
        assert [r / rates[-1] for r in rates] == pytest.approx(
            [r / expected[-1] for r in expected], rel=1e-9
        )
    assert all(
        not torch.equal(p, b)
        for p, b in zip(net.parameters(), before, strict=True)
        if p.grad is not None
    )


def test_resuming_keeps_the_rates(tmp_path):
    """A state_dict from the middle of a run, loaded into new groups: the same rates and the same
    weights follow.
    """

    def run(start, state=None):
        torch.manual_seed(0)
        net = model()
        optimizer = torch.optim.AdamW(mtst.layerwise_lr_groups(net, 1e-3, 0.5, head_lr=1e-2))
        schedule = mtst.warmup_linear(optimizer, 8)
        if state:
            net.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
            schedule.load_state_dict(state[2])
        rates = []
        for step in range(start, 8):
            if step == 4:
                kept = copy.deepcopy(
                    (net.state_dict(), optimizer.state_dict(), schedule.state_dict())
                )
            ids = torch.tensor([[2, 5 + step, 3]])
            net.eval()(
                ids, torch.ones_like(ids), {"domain": torch.tensor([step % 2])}
            ).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            rates.append([group["lr"] for group in optimizer.param_groups])
        return net, rates, kept

    whole, rates, middle = run(0)
    again, rest, _ = run(4, middle)
    assert rest == rates[4:]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
