"""Models of other shapes through the whole path: skips, two inputs, named outputs, halves by hand."""

import pytest
import torch
from torch import nn

import splitedge
from splitedge import Route
from splitedge.errors import BundleError, CodecError, ConfigError, PartitionError


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def run(model, *args):
    with torch.inference_mode():
        return model.eval()(*args)


class Skipping(nn.Module):
    """Between `down` and `up` two tensors cross: the deep one and the skip."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = self.first(x).relu()
        deep = self.mid(self.down(skip).relu()).relu()
        return self.last(torch.cat([self.up(deep), skip], 1))


def test_a_cut_that_several_tensors_cross():
    torch.manual_seed(0)
    model, x = Skipping(), torch.randn(4, 3, 8, 8)
    with splitedge.deploy(model, x, cut="mid", codec="raw", input_codec="raw") as deployment:
        (split,) = [option for option in deployment.options if option.route is Route.SPLIT]
        close(deployment(x, route="split").output, run(model, x))
        close(deployment(x[:1], route="cloud").output, run(model, x[:1]))
        assert split.bytes_up > 4 * (8 * 4 * 4 + 4 * 8 * 8)
        assert "float32(N, 8, 4, 4)" in deployment.explain(show=False)
    with splitedge.deploy(model, x, cut="mid", codec="int8") as deployment:
        error = (deployment(x, route="split").output - run(model, x)).abs().max()
        assert 0 < error < 0.1


class TwoInputs(nn.Module):
    """Tokens and numbers in, two outputs under names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.numbers = nn.Linear(3, 8)
        self.mix = nn.Linear(16, 16)
        self.classes = nn.Linear(16, 5)
        self.value = nn.Linear(16, 1)

    def forward(self, tokens, numbers):
        x = torch.cat([self.embed(tokens).mean(1), self.numbers(numbers).relu()], 1)
        x = self.mix(x).relu()
        return {"logits": self.classes(x), "value": self.value(x)}


@pytest.mark.parametrize("form", ["positional", "keyword"])
def test_two_inputs_and_named_outputs(form):
    torch.manual_seed(0)
    model = TwoInputs()
    tokens, numbers = torch.randint(0, 50, (4, 6)), torch.randn(4, 3)
    both = (tokens, numbers) if form == "positional" else {"tokens": tokens, "numbers": numbers}
    with splitedge.deploy(model, both, cut="mix", exits="mix", codec="raw") as deployment:
        expected = run(model, tokens, numbers)
        for route in ("split", "cloud"):
            output = deployment(both, route=route).output
            assert set(output) == {"logits", "value"}
            close(output["logits"], expected["logits"])
            close(output["value"], expected["value"])
        early = deployment(both, route="exit").output
        assert set(early) == {"logits"}
        assert early["logits"].shape == (4, 5)
        # An image codec can not send tokens: the default gives way, and says so.
        assert any("webp" in note for note in deployment.notes)
        assert "webp" in deployment.explain(show=False)


def test_an_input_codec_that_was_asked_for_must_work():
    both = (torch.randint(0, 50, (4, 6)), torch.randn(4, 3))
    with pytest.raises(CodecError, match="webp"):
        splitedge.deploy(TwoInputs(), both, cut="mix", input_codec="webp")


def test_no_input_codec_is_no_route_to_the_cloud_alone():
    both = (torch.randint(0, 50, (4, 6)), torch.randn(4, 3))
    with splitedge.deploy(TwoInputs(), both, cut="mix", input_codec=None) as deployment:
        assert {option.route for option in deployment.options} == {Route.SPLIT}
        with pytest.raises(splitedge.SplitedgeError):
            deployment(both, route="cloud", deadline=1.0)


class Branching(nn.Module):
    """Its path depends on the values of its input: export refuses it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        y = self.layer(x)
        return y if y.sum() > 0 else y * 2


def test_what_can_not_be_captured_names_the_way_out_which_works(tmp_path):
    torch.manual_seed(0)
    head, tail, x = Branching(), nn.Linear(4, 3), torch.randn(5, 6)
    with pytest.raises(PartitionError, match=r"deploy\(head=\.\.\., tail=\.\.\.\)"):
        splitedge.deploy(nn.Sequential(head, tail), x)
    with splitedge.deploy(head=head, tail=tail, example_inputs=x, codec="raw") as deployment:
        for rows in (1, 5):
            close(deployment(x[:rows], route="split").output, run(tail, run(head, x[:rows])))
        assert any("can not be saved" in note for note in deployment.notes)
        with pytest.raises(BundleError, match="can not be saved"):
            deployment.save(tmp_path / "b")


class TwoTensors(nn.Module):
    """A head whose output is a tuple, which the tail takes as two arguments."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x):
        return self.a(x), self.b(x)


class Joining(nn.Module):
    """The tail of `TwoTensors`."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, a, b):
        return self.out(torch.cat([a, b], 1))


def test_halves_by_hand_are_saved_where_they_can_be_captured(tmp_path):
    torch.manual_seed(0)
    head, tail, x = TwoTensors(), Joining(), torch.randn(5, 6)
    with splitedge.deploy(head=head, tail=tail, example_inputs=x, codec="raw", exits="by-hand") as deployment:
        expected = run(tail, *run(head, x))
        close(deployment(x, route="split").output, expected)
        close(deployment(x, route="cloud").output, expected)
        deployment.save(tmp_path / "b")
    with splitedge.load(tmp_path / "b") as loaded:
        close(loaded(x, route="split").output, expected)


def test_halves_that_do_not_fit_together_are_refused():
    with pytest.raises(PartitionError, match="what the head gives"):
        splitedge.deploy(head=nn.Linear(6, 4), tail=nn.Linear(5, 3), example_inputs=torch.randn(2, 6))
    with pytest.raises(ConfigError, match="by-hand"):
        splitedge.deploy(
            head=nn.Linear(6, 4), tail=nn.Linear(4, 3), example_inputs=torch.randn(2, 6), cut="x"
        )


class Pair(nn.Module):
    """No classifier: a tuple of two tensors."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16))
        self.one, self.two = nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, x):
        x = self.body(x)
        return self.one(x), self.two(x)


def test_a_model_that_is_no_classifier_works_without_confidence():
    torch.manual_seed(0)
    model, x = Pair(), torch.randn(4, 6)
    with splitedge.deploy(model, x, codec="raw", cut="body") as deployment:
        result = deployment(x, route="split")
        assert isinstance(result.output, tuple)
        close(result.output[0], run(model, x)[0])
        assert result.confidence != result.confidence
        with pytest.raises(ConfigError, match="classifier"):
            deployment.evaluate((x, torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ConfigError, match="classifier"):
        splitedge.deploy(model, x, exits="body")


def test_a_model_output_keeps_its_type():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    ids = {"input_ids": torch.randint(0, 60, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    with splitedge.deploy(
        model, ids, cut="bert.encoder.layer.0", exits="bert.encoder.layer.0", codec="raw"
    ) as deployment:
        output = deployment(ids, route="split").output
        with torch.inference_mode():
            close(output.logits, model(**ids).logits)
        assert type(output).__name__ == "SequenceClassifierOutput"
        early = deployment(ids, route="exit").output
        assert type(early) is type(output)
        assert early.logits.shape == (3, 2)


class Centred(nn.Module):
    """Subtracts the mean of the batch: a row's answer depends on its neighbours."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.first(x)
        return self.last((y - y.mean(0, keepdim=True)).relu())


def test_requests_are_not_batched_together_where_rows_change_each_others_answers(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    with splitedge.deploy(Centred(), x, codec="raw", cut="first") as deployment:
        assert any("never run as one batch" in note for note in deployment.notes)
        deployment.save(tmp_path / "b")
        assert not deployment.cloud_half.batchable
    with splitedge.load(tmp_path / "b") as loaded:
        assert not loaded.cloud_half.batchable
    with splitedge.deploy(Pair(), x, codec="raw", cut="body") as deployment:
        assert deployment.cloud_half.batchable


class Fixed(nn.Module):
    """Works for batches of four only."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).relu().reshape(4, 8))


def test_a_model_of_one_batch_size_works_for_that_one_and_says_so():
    torch.manual_seed(0)
    model, x = Fixed(), torch.randn(4, 6)
    with splitedge.deploy(model, x, codec="raw", cut="first") as deployment:
        assert any("one batch size only" in note for note in deployment.notes)
        close(deployment(x, route="split").output, run(model, x))
        with pytest.raises(CodecError):
            deployment(x[:1])
