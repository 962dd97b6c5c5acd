"""Language bundles: written, read whole or by half, and refused when a byte has changed."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path

import pytest
import torch
from llm_models import FAMILIES, tiny, transformers

from splitedge import LanguageDeployment, deploy, load, sealed
from splitedge.bundle import verify
from splitedge.errors import BundleError, ConfigError
from splitedge.llm.deployment import deploy_language
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.tokenizers import ByteTokenizer, CharTokenizer, load_tokenizer, tokenizer_files

LETTERS = CharTokenizer(string.printable[:97])
SHORT = ExitSchedule(texts=48, length=48, epochs=1, width=16, progress=False)
SMALL = tiny("gpt2", seed=5)


def held(*modules):
    """Bytes of weights that really are in memory."""
    kept = {t.data_ptr(): t.nbytes for m in modules for t in m.parameters() if not t.is_meta}
    return sum(kept.values())


def size(path):
    return path.stat().st_size


def written(deployment):
    return {m: deployment.generate("hello", max_tokens=10, mode=m).ids for m in deployment.modes}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_bundle_writes_what_its_deployment_wrote(tmp_path, family):
    with deploy(tiny(family), tokenizer=LETTERS, local=SMALL, exits=[1, 3]) as deployment:
        deployment.fit(schedule=SHORT)
        digest = deployment.save(tmp_path / "b")
        wanted = {
            mode: deployment.generate("hello", max_tokens=10, mode=mode).ids for mode in deployment.modes
        }
    with load(tmp_path / "b") as again:
        assert isinstance(again, LanguageDeployment) and again.digest == digest
        assert written(again) == wanted
        assert again.plan.exits.reports == deployment.plan.exits.reports
        assert again.save(tmp_path / "c") == digest
    assert verify(tmp_path / "b").digest == digest and sealed.kind(tmp_path / "b") == "language"


def test_tied_weights_stay_tied(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=97, intermediate_size=64,
        max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with deploy_language(transformers.LlamaForCausalLM(config).eval(), LETTERS) as deployment:
        wanted = deployment.generate("hello", max_tokens=10, mode="cloud_stream").ids
        digest = deployment.save(tmp_path / "b")
    with load(tmp_path / "b") as again:
        assert again.generate("hello", max_tokens=10, mode="cloud_stream").ids == wanted
        assert again.plan.anatomy.tied and again.save(tmp_path / "c") == digest


@pytest.mark.parametrize(("codec", "exits"), [("ids", [1, 2]), ("ids", []), ("int8", [2])])
def test_each_half_holds_its_own_weights_only(tmp_path, codec, exits):
    big = tiny("llama")
    with deploy_language(big, LETTERS, local=SMALL, exits=exits, codec=codec) as deployment:
        if exits:
            deployment.fit(schedule=SHORT)
        deployment.save(tmp_path / "b")
    blocks = [sum(p.nbytes for p in block.parameters()) for block in big.model.layers]
    ends = big.model.embed_tokens.weight.nbytes, big.model.norm.weight.nbytes + big.lm_head.weight.nbytes
    cut = exits[-1] if exits else 0
    for side, other in (("edge", "cloud"), ("cloud", "edge")):
        folder = tmp_path / side
        (tmp_path / "b").rename(folder)
        hidden = (folder / other).rename(tmp_path / "elsewhere")
        found = load(folder, side=side)
        plan = found.plan
        if side == "edge":
            mine = sum(blocks[:cut]) + ends[0] + ends[1] if exits else 0
            assert plan.local is not None and held(plan.head, plan.tail) == mine
            assert size(folder / "edge/model.safetensors") < mine + 20_000
            with pytest.raises(ConfigError, match="edge's half"):
                assert found.cloud_half
        else:
            mine = sum(blocks[cut if codec != "ids" else 0 :]) + ends[1] + (ends[0] if codec == "ids" else 0)
            assert plan.local is None and plan.exits is None and held(plan.head, plan.tail) == mine
            assert len(found.cloud_half.models) == 1
            with pytest.raises(ConfigError, match="cloud's half"):
                found.generate([1, 2])
        with pytest.raises(BundleError, match=f"'{other}/.*missing"):
            load(folder, side=other)
        hidden.rename(folder / other)
        folder.rename(tmp_path / "b")


def test_the_edges_half_writes_alone_without_a_cloud(tmp_path):
    with deploy_language(tiny("llama"), LETTERS, local=SMALL) as deployment:
        wanted = deployment.generate("hello", max_tokens=8, mode="local").ids
        deployment.save(tmp_path / "b")
    with load(tmp_path / "b", side="edge") as edge:
        assert [str(mode) for mode in edge.modes] == ["local"]
        assert edge.generate("hello", max_tokens=8).ids == wanted


def test_a_changed_byte_is_refused_with_the_files_name(tmp_path):
    with deploy_language(tiny("llama"), LETTERS, local=SMALL) as deployment:
        deployment.save(tmp_path / "b")
    for name in ("edge/local.safetensors", "cloud/model.safetensors"):
        path = tmp_path / "b" / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"'{name}' has been changed"):
            load(tmp_path / "b")
        path.write_bytes(data)
    with pytest.raises(BundleError, match="was asked for"):
        load(tmp_path / "b", digest="0" * 64)
    with pytest.raises(ConfigError, match="takes no policy"):
        load(tmp_path / "b", policy="latency")


def test_a_manifest_can_not_name_foreign_code_or_parts(tmp_path):
    with deploy_language(tiny("llama"), LETTERS) as deployment:
        deployment.save(tmp_path / "b")
    plan = json.loads((tmp_path / "b/manifest.json").read_text())["plan"]

    def wrong(match, **changes):
        def fill(root):
            for half in ("edge", "cloud"):
                file = f"{half}/model.safetensors"
                (root / file).write_bytes((tmp_path / "b" / file).read_bytes())

        sealed.write(tmp_path / "c", {**plan, **changes}, "0", fill)
        with pytest.raises(BundleError, match=match):
            load(tmp_path / "c")

    model = plan["model"]
    wrong("type 'bert'", model={**model, "config": {**model["config"], "model_type": "bert"}})
    wrong("names auto_map", model={**model, "config": {**model["config"], "auto_map": {"a": "evil.py"}}})
    wrong("4 blocks, not 3", model={**model, "depth": 3})
    wrong("plan.cut", cut=-1)
    wrong("a cut at 9", cut=9)
    wrong("no codec of hidden states 'zip'", codec="zip")
    wrong("foreign|Extra inputs", more=1)
    small = {**model["config"], "hidden_size": 16}
    wrong("is .* its configuration says", model={**model, "config": small})


def test_tokenizers_that_a_bundle_can_hold():
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(["once upon a time there was a cat, once upon a time"], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    for tokenizer in (fast, ByteTokenizer(), CharTokenizer("abcdefgh 你")):
        entry, files = tokenizer_files(tokenizer)
        for text in ("a bad cafe 你"[:5], "abc 你"):
            kept = load_again(entry, files)
            assert kept.encode(text) == tokenizer.encode(text)
            assert kept.decode(kept.encode(text)) == text
    entry, files = tokenizer_files(fast)
    again = load_again(entry, files)
    talk = [{"role": "user", "content": "hi"}]
    assert again.apply_chat_template(talk, tokenize=False) == "<user>hi<assistant>"
    assert again.eos_token == "</s>"

    class Strange:
        def encode(self, text):
            return [1]

        def decode(self, ids):
            return ""

    with pytest.raises(BundleError, match="holds no code"):
        tokenizer_files(Strange())
    with pytest.raises(BundleError, match=r"no tokenizer|can not be read"):
        load_again(entry, {**files, "tokenizer.json": "{}"})


def load_again(entry, files):
    with tempfile.TemporaryDirectory() as made:
        for name, text in files.items():
            (Path(made) / name).write_text(text)
        return load_tokenizer(entry, Path(made))


def test_a_local_hub_directory_is_deployed_saved_and_read(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "once": 1, "upon": 2}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(
        tmp_path / "hub"
    )
    tiny("qwen2").save_pretrained(tmp_path / "hub")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "hub")
    with deploy(model, tokenizer=tokenizer) as deployment:
        wanted = deployment.generate("once upon", max_tokens=8, mode="cloud_stream")
        deployment.save(tmp_path / "b")
    with load(tmp_path / "b") as again:
        found = again.generate("once upon", max_tokens=8, mode="cloud_stream")
        assert (found.ids, found.text) == (wanted.ids, wanted.text)
