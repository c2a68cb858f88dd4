"""Import and export of checkpoints: formats, reports, refusals. What they compute: test_parity.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from multimodal.models import Clip, Lxmert, VisualBert
from multimodal.models.weights import Report, load_transformers, save_transformers
from tests.models.make import make_model, make_stem

MISSING = {
    "visual_bert": {
        "visual_embedding.boxes.weight",
        "embedding.logit_scale",
        "embedding.image_projection.weight",
        "embedding.text_projection.weight",
    },
    "lxmert": {"embedding.logit_scale", "embedding.image_projection.weight", "embedding.text_projection.weight"},
    "clip": {f"meeting.{layer}.{kind}" for layer in ("image", "text", "output") for kind in ("weight", "bias")},
}


def make(model_type: str) -> torch.nn.Module:
    if model_type == "clip":
        return make_model(Clip, "paper", make_stem("patches"), text_width=20, text_heads=5, text_feedforward=14)
    return make_model({"visual_bert": VisualBert, "lxmert": Lxmert}[model_type], "paper")


@pytest.fixture(params=MISSING)
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(model_type: str, tmp_path: Path) -> Path:
    """A checkpoint of each kind."""
    torch.manual_seed(0)
    save_transformers(make(model_type), tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_weights(first: torch.nn.Module, second: torch.nn.Module, but: set[str]) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == [
        name for name in a if name in but and not torch.equal(a[name], b[name])
    ]


def test_what_the_checkpoint_lacks_is_listed(folder: Path, model_type: str) -> None:
    model, report = load_transformers(folder)
    assert set(report.missing) == MISSING[model_type]
    assert set(report.loaded) == {name for name, _ in model.named_parameters()} - MISSING[model_type]
    assert report.unexpected == []
    patches = ["visual_embedding.features.weight: [16, 3, 4, 4] to [16, 48]"] if model_type == "clip" else []
    assert report.reshaped == patches
    assert not model.training
    if isinstance(model, VisualBert):
        assert not model.visual_embedding.boxes.weight.any()


def test_a_missing_and_an_unexpected_tensor_are_listed(folder: Path, model_type: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    norm = next(name for name in tensors if name.endswith(("LayerNorm.weight", "layer_norm1.weight")))
    tensors["stray.weight"] = tensors.pop(norm)
    query = next(name for name in tensors if name.endswith((".query.weight", ".q_proj.weight")))
    del tensors[query]  # a third of one of ours: the other two thirds have no use then
    save_file(tensors, path)

    _, report = load_transformers(folder)
    new = set(report.missing) - MISSING[model_type]
    assert len(new) == 2
    assert sum(name.endswith("norm.weight") for name in new) == 1
    assert sum(name.endswith("query_key_value.weight") for name in new) == 1
    assert len(report.unexpected) == 3
    assert "stray.weight" in report.unexpected
    assert all(name in str(report) for name in (*new, "stray.weight"))


def test_report_reads_well() -> None:
    report = Report(loaded=["a", "b"], missing=["c"], unexpected=[], reshaped=["b: [2, 3] to [6]"])
    assert str(report).splitlines() == [
        "loaded: 2 parameters",
        "missing, left as initialised: 1",
        "  c",
        "unexpected, not used: none",
        "reshaped: 1",
        "  b: [2, 3] to [6]",
    ]


@pytest.mark.parametrize("form", ["bin", "sharded safetensors", "sharded bin", "half precision"])
def test_formats(folder: Path, model_type: str, form: str) -> None:
    expected, _ = load_transformers(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    if form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif form == "half precision":
        save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
        expected.half().float()
    else:
        name, write = ("model.safetensors", save_file) if "safetensors" in form else ("pytorch_model.bin", torch.save)
        stem, suffix = name.split(".")
        names = list(tensors)
        shards = [names[:3], names[3:]]
        where = {}
        for number, shard in enumerate(shards, start=1):
            file = f"{stem}-{number:05}-of-00002.{suffix}"
            write({key: tensors[key] for key in shard}, folder / file)
            where |= dict.fromkeys(shard, file)
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": where}))
    model, report = load_transformers(folder)
    same_weights(model, expected, but=MISSING[model_type])
    assert set(report.missing) == MISSING[model_type]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    "name, config, heads",
    [
        ("VisualBertForQuestionAnswering", "VisualBertConfig", {"cls.weight", "cls.bias"}),
        ("LxmertForQuestionAnswering", "LxmertConfig", {f"answer_head.logit_fc.{n}.weight" for n in (0, 2, 3)}),
    ],
)
def test_a_checkpoint_with_a_head(name: str, config: str, heads: set[str], tmp_path: Path) -> None:
    settings = getattr(transformers, config)(
        vocab_size=30, hidden_size=8, num_attention_heads=2, intermediate_size=6, max_position_embeddings=7
    )
    settings.l_layers = settings.r_layers = settings.x_layers = settings.num_hidden_layers = 1
    reference = getattr(transformers, name)(settings)
    reference.save_pretrained(tmp_path)
    model, report = load_transformers(tmp_path)
    assert heads <= set(report.unexpected)
    assert all(tensor.startswith(("cls.", "answer_head.")) for tensor in report.unexpected)
    assert set(report.missing) == MISSING[settings.model_type]
    assert torch.equal(model.word_embeddings.weight, reference.get_input_embeddings().weight)


def test_first_clip_checkpoints_say_it_twice(tmp_path: Path) -> None:
    """What stands in `..._dict` holds, as in transformers."""
    save_transformers(make("clip"), tmp_path)
    right = json.loads((tmp_path / "config.json").read_text())
    wrong = right["text_config"] | {"hidden_size": 512, "num_hidden_layers": 12}
    change_config(tmp_path, text_config=wrong, text_config_dict=right["text_config"], vision_config_dict=None)
    model, _ = load_transformers(tmp_path)
    assert model.word_embeddings.embedding_dim == 20


def test_published_configurations_need_no_value_spelled_out(tmp_path: Path) -> None:
    """Values that config.json leaves out are those of transformers; only the shapes are built here."""
    for model_type, config in (
        ("visual_bert", transformers.VisualBertConfig()),
        ("lxmert", transformers.LxmertConfig()),
        ("clip", transformers.CLIPConfig()),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        with torch.device("meta"):
            reference = transformers.AutoModel.from_config(config)
        shapes = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in reference.named_parameters()}
        torch.save(shapes, tmp_path / "pytorch_model.bin")
        with torch.device("meta"):
            model, report = load_transformers(tmp_path)
        assert report.unexpected == []
        assert set(report.missing) == MISSING[model_type]
        assert model.width == 768


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/config.json: no such file"):
        load_transformers(folder / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor pytorch_model.bin"):
        load_transformers(folder)
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-00001-of-00001.safetensors: no such file"):
        load_transformers(folder)
    change_config(folder, model_type="bert")
    with pytest.raises(ValueError, match=r"model_type='bert'; allowed are visual_bert, lxmert, clip"):
        load_transformers(folder)


@pytest.mark.parametrize(
    "model_type, changes, named",
    [
        ("visual_bert", {"hidden_act": "relu"}, "hidden_act='relu' isn't supported, only 'gelu'"),
        ("visual_bert", {"bypass_transformer": True}, "bypass_transformer=True"),
        ("visual_bert", {"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05 .* only 1e-12"),
        ("visual_bert", {"hidden_size": 32}, r"the file has \[40, 16\], but its config.json means \[40, 32\]"),
        ("lxmert", {"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ("lxmert", {"visual_pos_dim": 5}, "visual_pos_dim=5 .* only 4"),
        ("clip", {"text_config": {"hidden_act": "gelu"}}, "text_config: hidden_act='gelu' .* only 'quick_gelu'"),
        ("clip", {"vision_config": {"num_channels": 1}}, "vision_config: num_channels=1"),
        ("clip", {"vision_config": {"image_size": [224, 336]}}, r"vision_config: image_size=\[224, 336\]"),
    ],
)
def test_what_is_not_built_here_is_refused_by_name(folder: Path, model_type: str, changes: dict, named: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != model_type:
        pytest.skip("another architecture")
    change_config(
        folder, **{key: config[key] | value if isinstance(value, dict) else value for key, value in changes.items()}
    )
    with pytest.raises(ValueError, match=named):
        load_transformers(folder)


def test_image_size_is_for_clip_only(folder: Path, model_type: str) -> None:
    if model_type != "clip":
        with pytest.raises(ValueError, match=f"image_size=8: {model_type} reads regions"):
            load_transformers(folder, image_size=8)


def test_saving_lists_what_has_no_place_there(model_type: str, tmp_path: Path) -> None:
    assert set(save_transformers(make(model_type), tmp_path)) == MISSING[model_type]


def test_saving_refuses_what_transformers_cannot_compute(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block='common'"):
        save_transformers(make_model(Lxmert, "common"), tmp_path)
    with pytest.raises(ValueError, match="vision=Regions: transformers' CLIP reads patches only"):
        save_transformers(make_model(Clip, "paper"), tmp_path)
    with pytest.raises(ValueError, match="Linear; allowed are VisualBert, Lxmert, Clip"):
        save_transformers(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="eos_token_id=5: only CLIP"):
        save_transformers(make_model(Lxmert, "paper"), tmp_path, eos_token_id=5)
    model = make_model(VisualBert, "paper")
    with torch.no_grad():
        model.visual_embedding.boxes.weight[0, 0] = 0.1
    with pytest.raises(ValueError, match=r"visual_embedding.boxes.weight isn't zero"):
        save_transformers(model, tmp_path)
    assert list(tmp_path.iterdir()) == [], "a refusal leaves nothing behind"


def test_transformers_is_not_imported() -> None:
    code = "import sys, multimodal.models.weights; print('transformers' in sys.modules, 'timm' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
