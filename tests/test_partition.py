"""Every cut of unlike models: head and tail together are the model, and each stands alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import zoo
from torch import nn

from splitedge.errors import PartitionError
from splitedge.partition import Cut, Graph, capture
from splitedge.structure import describe

BATCHES = (1, 3, 8)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, **sizes))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes))


def tokens(rows: int, length: int = 12, words: int = 50) -> torch.Tensor:
    return torch.randint(0, words, (rows, length))


def bert_inputs(rows: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(rows, 12, dtype=torch.long)
    mask[:, 9:] = 0
    return {"input_ids": tokens(rows, words=100), "attention_mask": mask}


Builder = Callable[[], nn.Module]
Inputs = Callable[[int], Any]
MODELS: dict[str, tuple[Builder, Inputs]] = {
    "resnet20": (lambda: zoo.resnet(20), lambda n: torch.randn(n, 3, 32, 32)),
    "resnet56": (lambda: zoo.resnet(56), lambda n: torch.randn(n, 3, 32, 32)),
    "resnet8": (lambda: zoo.resnet8_keras(zoo.weights_dir()), lambda n: 255 * torch.rand(n, 3, 32, 32)),
    "mobilenet": (zoo.MobileNet, lambda n: torch.randn(n, 3, 32, 32)),
    "densenet": (zoo.DenseNet, lambda n: torch.randn(n, 3, 16, 16)),
    "unet": (zoo.UNet, lambda n: torch.randn(n, 1, 16, 16)),
    "inception": (zoo.Inception, lambda n: torch.randn(n, 3, 16, 16)),
    "lstm": (zoo.LstmClassifier, tokens),
    "two_in_two_out": (zoo.TwoInTwoOut, lambda n: (torch.randn(n, 6), torch.randn(n, 4))),
    "bert": (bert, bert_inputs),
    "vit": (vit, lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)}),
}


@cache
def captured(name: str) -> tuple[nn.Module, Inputs, Graph]:
    if name in ("bert", "vit") and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    model = build().eval()
    return model, inputs, capture(model, inputs(1))


def call(module: nn.Module, value: Any) -> Any:
    with torch.inference_mode():
        if isinstance(value, dict):
            return module(**value)
        return module(*value) if isinstance(value, tuple) else module(value)


def assert_equal(expected: Any, got: Any, within: float = 1e-5) -> None:
    """Same structure, same class of output, and tensors that differ by no more than `within`."""
    assert type(expected) is type(got)
    tree, wanted = describe(expected)
    other, tensors = describe(got)
    assert tree == other
    for a, b in zip(wanted, tensors, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max().item() <= within


def assert_exact(name: str, cuts: Iterable[Cut], batches: Iterable[int] = BATCHES) -> None:
    model, inputs, graph = captured(name)
    given = {rows: inputs(rows) for rows in batches}
    wanted = {rows: call(model, x) for rows, x in given.items()}
    for cut in cuts:
        head, tail = graph.split(cut)
        for rows, x in given.items():
            crossing = call(head, x)
            assert isinstance(crossing, tuple)
            assert [tuple(t.shape) for t in crossing] == [s.shape_at(rows) for s in cut.specs]
            with torch.inference_mode():
                assert_equal(wanted[rows], tail(*crossing))


def sampled(cuts: list[Cut], count: int) -> list[Cut]:
    """Some cuts, spread over the model, its first and last among them."""
    step = max(1, (len(cuts) - 1) // (count - 1))
    return [*cuts[:-1:step], *cuts[-1:]]


@pytest.mark.parametrize("name", MODELS)
def test_head_and_tail_equal_the_model(name: str) -> None:
    single = [c for c in captured(name)[2].cuts() if len(c.tensors) == 1]
    several = [c for c in captured(name)[2].cuts() if len(c.tensors) > 1]
    assert_exact(name, sampled(single, 5))
    assert_exact(name, sampled(several, 3))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MODELS)
def test_head_and_tail_equal_the_model_at_every_cut(name: str) -> None:
    assert_exact(name, captured(name)[2].cuts())


@pytest.mark.parametrize("name", ["densenet", "unet", "resnet20", "bert"])
def test_skip_connections_give_cuts_that_several_tensors_cross(name: str) -> None:
    assert any(len(c.tensors) > 1 for c in captured(name)[2].cuts())


@pytest.mark.parametrize("name", MODELS)
def test_cuts_go_forward_and_differ(name: str) -> None:
    graph = captured(name)[2]
    cuts = graph.cuts()
    assert len({c.name for c in cuts}) == len(cuts)
    assert len({tuple(t.name for t in c.tensors) for c in cuts}) == len(cuts)
    for before, after in pairwise(cuts):
        assert before.position < after.position
        assert before.head_flops <= after.head_flops
        assert before.head_params <= after.head_params
    for cut in cuts:
        assert cut.head_flops + cut.tail_flops == graph.total_flops
        assert cut.head_params + cut.tail_params >= graph.total_params
        assert cut.bytes == sum(t.spec.nbytes() for t in cut.tensors)


def test_each_side_holds_its_own_weights_and_no_others() -> None:
    model, inputs, graph = captured("resnet20")
    cut = graph.cut("layer2")
    head, tail = graph.split(cut)
    count = [sum(p.numel() for p in side.parameters()) for side in (head, tail)]
    assert count == [cut.head_params, cut.tail_params]
    assert sum(count) == sum(p.numel() for p in model.parameters())
    theirs = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    own = [{t.untyped_storage().data_ptr() for t in side.state_dict().values()} for side in (head, tail)]
    assert not own[0] & own[1]
    assert not (own[0] | own[1]) & theirs
    x = inputs(1)
    before = call(tail, call(head, x))
    with torch.no_grad():
        saved = model.conv1.weight.clone()
        model.conv1.weight.zero_()
        assert torch.equal(call(tail, call(head, x)), before)
        model.conv1.weight.copy_(saved)


def test_a_shared_weight_goes_to_both_sides() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 6)
            self.mix = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.mix(self.embed(x)), self.embed.weight)

    model = Tied().eval()
    graph = capture(model, tokens(2, 5, 20))
    cut = graph.cut("mix")
    assert (cut.head_params, cut.tail_params) == (120 + 42, 120)
    x = tokens(3, 5, 20)
    head, tail = graph.split(cut)
    assert_equal(call(model, x), call(tail, call(head, x)))


@pytest.mark.parametrize("name", ["resnet8", "lstm", "two_in_two_out", "bert"])
def test_head_and_tail_can_be_exported_again(name: str) -> None:
    model, inputs, graph = captured(name)
    cuts = graph.cuts()
    head, tail = graph.split(cuts[len(cuts) // 2])
    x = inputs(2)
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    crossing = call(head, x)
    dim = torch.export.Dim("rows")
    again = torch.export.export(tail, crossing, dynamic_shapes={"tensors": tuple({0: dim} for _ in crossing)})
    head_again = torch.export.export(head, args, kwargs)
    with torch.inference_mode():
        assert_equal(call(model, x), again.module()(*head_again.module()(*args, **kwargs)))


def test_a_cut_is_found_by_module_path() -> None:
    graph = captured("resnet20")[2]
    assert graph.cut("layer2").name == "layer2.2"
    assert graph.cut("layer2").module_path == "layer2.2"
    assert [t.spec.shape for t in graph.cut("layer2").tensors] == [(1, 32, 16, 16)]
    assert graph.cut("layer1.0.bn1").position == graph.cut("layer1.0@relu_1").position - 1
    assert graph.cut("conv1").bytes == 16 * 32 * 32 * 4


def test_an_unknown_cut_is_refused_with_the_nearest_names() -> None:
    graph = captured("resnet20")[2]
    with pytest.raises(PartitionError, match=r"no cut and no module 'layr2'; nearest: .*layer2"):
        graph.cut("layr2")
    with pytest.raises(PartitionError, match="nothing is left"):
        graph.cut("linear")
    with pytest.raises(PartitionError, match="not one of this graph"):
        captured("unet")[2].split(graph.cut("layer2"))


def test_segments_chain_to_the_model() -> None:
    model, inputs, graph = captured("densenet")
    cuts = sampled(graph.cuts(), 5)
    segments = graph.segments(cuts)
    assert len(segments) == len(cuts) + 1
    x = inputs(3)
    tensors = graph.input_structure.flatten(x)
    with torch.inference_mode():
        for segment, cut in zip(segments, [*cuts, None], strict=True):
            tensors = segment(*tensors)
            if cut is not None:
                assert [tuple(t.shape) for t in tensors] == [s.shape_at(3) for s in cut.specs]
        assert_equal(call(model, x), graph.output_structure.unflatten(tensors))


def test_segments_in_the_wrong_order_are_refused() -> None:
    graph = captured("resnet20")[2]
    with pytest.raises(PartitionError, match="does not come after"):
        graph.segments([graph.cut("layer2"), graph.cut("layer1")])
    with pytest.raises(PartitionError, match="nothing crosses"):
        graph.split(graph.cut("local"))


def test_training_mode_is_put_back() -> None:
    model = zoo.small_cnn().train()
    model[1].eval()
    capture(model, torch.randn(1, 1, 8, 8))
    assert model.training
    assert not model[1].training


def test_a_tensor_whose_batch_is_not_dimension_0_crosses() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6)
            self.fc = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states, _ = self.rnn(x.transpose(0, 1).contiguous())  # time first
            return self.fc(torch.relu(states).mean(0))

    model = Sequence().eval()
    graph = capture(model, torch.randn(1, 5, 4))
    assert any(s.batch_dim == 1 for c in graph.cuts() for s in c.specs)
    for cut in graph.cuts():
        head, tail = graph.split(cut)
        x = torch.randn(3, 5, 4)
        assert_equal(call(model, x), call(tail, call(head, x)))


def test_a_tensor_of_several_rows_for_each_row_crosses_and_sizes_are_made_anew() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n = x.shape[0]
            y = torch.relu(self.fc(x.reshape(n * 6, 4)))
            return y.reshape(n, 6, 4).sum(1) + torch.arange(n)[:, None] * torch.ones(n, 1)

    model = Patches().eval()
    graph = capture(model, torch.randn(1, 6, 4))
    assert any(s.shape == (6, 4) and s.batch_dim == 0 for c in graph.cuts() for s in c.specs)
    for cut in graph.cuts():
        for rows in BATCHES:
            head, tail = graph.split(cut)
            x = torch.randn(rows, 6, 4)
            assert_equal(call(model, x), call(tail, call(head, x)))


def test_views_are_not_sent_twice() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)
            self.out = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            scores = torch.softmax(q @ k.transpose(1, 2), -1)
            return self.out(scores @ v)

    graph = capture(Attention().eval(), torch.randn(1, 5, 8))
    qkv = graph.cut("qkv")
    assert [t.spec.shape for t in qkv.tensors] == [(1, 5, 24)]
    assert max(len(c.tensors) for c in graph.cuts()) == 2  # scores, and v or what holds it


def test_nested_inputs_and_constants() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(
            self, pair: dict[str, torch.Tensor], scale: float, flag: bool = False
        ) -> list[torch.Tensor]:
            y = self.fc(pair["a"]) * scale + pair["b"]
            return [torch.relu(y) if flag else y, y.sum(1)]

    model = Nested().eval()
    example = {"pair": {"b": torch.randn(1, 3), "a": torch.randn(1, 4)}, "scale": 2.0, "flag": True}
    graph = capture(model, example)
    for cut in graph.cuts():
        head, tail = graph.split(cut)
        x = {"pair": {"a": torch.randn(3, 4), "b": torch.randn(3, 3)}, "scale": 2.0, "flag": True}
        assert_equal(call(model, x), call(tail, call(head, x)))


def test_models_that_mix_the_rows_of_a_batch_are_told_apart() -> None:
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0, keepdim=True)

    assert not capture(Centred(), torch.randn(1, 4)).rows_independent
    assert not capture(nn.BatchNorm2d(1, track_running_stats=False), torch.randn(2, 1, 4, 4)).rows_independent
    for name in ("resnet8", "lstm", "two_in_two_out", "bert"):
        assert captured(name)[2].rows_independent
