"""Checkpoints of the transformers library, in and out: VisualBertModel, LxmertModel and CLIPModel.

Read and written here without that library. Every name in a file and in a model is accounted for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multimodal.models.clip import Clip
from multimodal.models.layers import BERT, CLIP, Encoder
from multimodal.models.lxmert import Lxmert
from multimodal.models.vision import Patches, Regions, StandardisedRegions
from multimodal.models.visualbert import PaperVisualEmbedding, VisualBert

EMBEDDING_SIZE = 512  # of the embedding heads, which VisualBERT's and LXMERT's checkpoints lack

Config = dict[str, Any]
Model = VisualBert | Lxmert | Clip
# Our module or parameter -> theirs. The tensors of several are stacked: query, key, value.
Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Report:
    """What became of every tensor of a file and of a model."""

    loaded: list[str]  # our parameters that the file filled
    missing: list[str]  # our parameters that it has nothing for; they stay as initialised
    unexpected: list[str]  # tensors of the file that have no place here
    reshaped: list[str]  # loaded, but in another shape: the name and both shapes

    def __str__(self) -> str:
        """A line for each list, and one for each name in it but those that simply loaded."""
        lines = [f"loaded: {len(self.loaded)} parameters"]
        for title, names in (
            ("missing, left as initialised", self.missing),
            ("unexpected, not used", self.unexpected),
            ("reshaped", self.reshaped),
        ):
            lines += [f"{title}: {len(names) or 'none'}", *(f"  {name}" for name in names)]
        return "\n".join(lines)


def load_transformers(directory: str | Path, *, image_size: int | None = None) -> tuple[Model, Report]:
    """Build the model that a checkpoint folder of transformers describes, and fill it.

    The folder holds `config.json` and `model.safetensors` or `pytorch_model.bin`, whole or in shards. A checkpoint with
    a task's head on top will do; the head is listed as unexpected. What our models have beyond theirs is listed as
    missing: VisualBERT's box projection, which is zero and so changes nothing; the embedding head of VisualBERT and
    LXMERT; the network in which CLIP's two vectors meet.

    Args:
        directory: the checkpoint folder.
        image_size: side of the images in pixels, CLIP only; none: as in the checkpoint. For another size the positions
            of the patches are interpolated (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2).

    Returns:
        The model, fp32 and in evaluation mode, and what became of every tensor.

    Raises:
        ValueError: a file is missing, the architecture is another one, or its configuration asks for something that
            isn't built here; the message names it.
    """
    directory = Path(directory)
    config = _read_config(directory)
    model_type = config.get("model_type")
    if model_type not in _FORMATS:
        raise ValueError(f"{directory / 'config.json'}: model_type={model_type!r}; allowed are {', '.join(_FORMATS)}")
    form = _FORMATS[model_type]
    if image_size is not None:
        if model_type != "clip":
            raise ValueError(f"image_size={image_size}: {model_type} reads regions, which have no image size")
        config["vision_config"] = (config.get("vision_config") or {}) | {"image_size": image_size}
        config.pop("vision_config_dict", None)
    model = form.build(config)
    tensors = {name.removeprefix(form.prefix): tensor for name, tensor in _read_tensors(directory).items()}
    return model.eval(), _fill(model, form.names(model), tensors)


def save_transformers(model: Model, directory: str | Path, *, eos_token_id: int | None = None) -> list[str]:
    """Write a model so that the `from_pretrained` of transformers loads it with no key missing and none unexpected.

    What `StandardisedRegions` does to the features goes into the layer that projects them, so that transformers' model
    takes them as they are.

    Args:
        model: one with `block="paper"`.
        directory: made if need be; `config.json` and `model.safetensors` in it are replaced.
        eos_token_id: CLIP only: the id of [end], by which transformers finds the token to pool; none: the last one, as
            in CLIP's own vocabulary.

    Returns:
        Names of our parameters that transformers has no place for: those that `load_transformers` lists as missing,
        and those of a visual backbone.

    Raises:
        ValueError: transformers can't compute what this model does: its block is the common one, a box projection isn't
            zero, or CLIP reads something else than patches.
    """
    form = next((form for form in _FORMATS.values() if type(model) is form.architecture), None)
    if form is None:
        allowed = ", ".join(form.architecture.__name__ for form in _FORMATS.values())
        raise ValueError(f"transformers has no {type(model).__name__}; allowed are {allowed}")
    if model.block != "paper":
        raise ValueError(f"block={model.block!r}: transformers has the papers' blocks only, block='paper'")
    config = form.config(model)
    if eos_token_id is not None:
        if not isinstance(model, Clip):
            raise ValueError(f"eos_token_id={eos_token_id}: only CLIP pools its [end] token")
        config["text_config"]["eos_token_id"] = eos_token_id

    names = form.names(model)
    tensors: dict[str, Tensor] = {}
    left_out = []
    for name, parameter in model.named_parameters():
        theirs = _theirs(name, names)
        if theirs:
            values = parameter.detach()
            parts = values.chunk(len(theirs)) if len(theirs) > 1 else (values,)
            tensors |= {their_name: part.clone() for their_name, part in zip(theirs, parts, strict=True)}
        else:
            left_out.append(name)
    if isinstance(model.vision, StandardisedRegions):
        (projection,) = names["visual_embedding.features"]
        weight = tensors[f"{projection}.weight"] / model.vision.deviation
        tensors[f"{projection}.weight"] = weight
        tensors[f"{projection}.bias"] = tensors[f"{projection}.bias"] - weight @ model.vision.mean
    if isinstance(model.vision, Patches):
        patch_size = model.vision.patch_size
        tensors[_PATCH_WEIGHT] = tensors[_PATCH_WEIGHT].unflatten(1, (3, patch_size, patch_size))

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return left_out


def _read_config(directory: Path) -> Config:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a checkpoint folder of transformers has one")
    config: Config = json.loads(path.read_text())
    return config


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, from one file or from the shards that an index lists."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return _read_file(directory / name)
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return {key: tensor for shard in shards for key, tensor in _read_file(directory / shard).items()}
    raise ValueError(f"{directory}: has neither model.safetensors nor pytorch_model.bin, nor an index of shards of one")


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, though the index of shards lists it")
    if path.suffix == ".safetensors":
        return load_file(path)
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _theirs(name: str, names: Names) -> tuple[str, ...]:
    """Their names of our parameter, which is listed itself or as part of its module; none if they lack it."""
    module, _, kind = name.rpartition(".")
    return names.get(name) or tuple(f"{their_module}.{kind}" for their_module in names.get(module, ()))


@torch.no_grad()
def _fill(model: nn.Module, names: Names, tensors: dict[str, Tensor]) -> Report:
    report = Report(loaded=[], missing=[], unexpected=[], reshaped=[])
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        theirs = _theirs(name, names)
        if not theirs or any(their_name not in tensors for their_name in theirs):
            report.missing.append(name)
            continue
        parts = [tensors[their_name] for their_name in theirs]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if tensor.shape != parameter.shape:
            report.reshaped.append(f"{name}: {list(tensor.shape)} to {list(parameter.shape)}")
            tensor = _reshape(name, tensor, parameter)
        parameter.copy_(tensor)
        report.loaded.append(name)
        used.update(theirs)
    report.unexpected.extend(their_name for their_name in tensors if their_name not in used)
    return report


def _reshape(name: str, tensor: Tensor, parameter: Tensor) -> Tensor:
    """The two tensors whose shape may differ: the convolution over patches, and positions for another image size."""
    if name == "visual_embedding.features.weight" and tensor.flatten(1).shape == parameter.shape:
        return tensor.flatten(1)
    if name == "image_positions.weight" and tensor.shape[1:] == parameter.shape[1:]:
        return interpolate_positions(tensor, len(parameter))
    raise ValueError(f"{name}: the file has {list(tensor.shape)}, but its config.json means {list(parameter.shape)}")


def interpolate_positions(table: Tensor, length: int) -> Tensor:
    """Fit positions of a class token and a square of patches, `float[1 + n * n, D]`, to `float[length, D]`.

    The class token has no place in the square and keeps its own.
    """
    old, new = round((len(table) - 1) ** 0.5), round((length - 1) ** 0.5)
    square = table[1:].float().T.unflatten(1, (old, old)).unsqueeze(0)  # [1, D, old, old]
    square = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:1].float(), square[0].flatten(1).T])


def _require(config: Config, where: str, **allowed: object) -> None:
    """Refuse what isn't built here."""
    for key, value in allowed.items():
        if config[key] != value:
            raise ValueError(f"{where}: {key}={config[key]!r} isn't supported, only {value!r}")


# ---- What VisualBERT and LXMERT share: BERT's names


_BERT_DEFAULTS: Config = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def _bert_arguments(config: Config) -> dict[str, Any]:
    _require(config, "config.json", hidden_act="gelu")
    return {
        "vocab_size": config["vocab_size"],
        "max_text_length": config["max_position_embeddings"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "feedforward": config["intermediate_size"],
        "dropout": config["hidden_dropout_prob"],
        "segments": config["type_vocab_size"],
        "embedding_size": EMBEDDING_SIZE,
        "block": "paper",
    }


def _bert_config(model: VisualBert | Lxmert, encoder: Encoder) -> Config:
    return {
        "vocab_size": model.word_embeddings.num_embeddings,
        "hidden_size": model.width,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.feedforward,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.dropout.p,
        "attention_probs_dropout_prob": model.dropout.p,
        "max_position_embeddings": model.text_embedding.positions.num_embeddings,
        "type_vocab_size": model.text_embedding.segments.num_embeddings,
        "layer_norm_eps": BERT.eps,
        "pad_token_id": 0,
    }


def _bert_text_names() -> Names:
    return {
        "word_embeddings": ("embeddings.word_embeddings",),
        "text_embedding.positions": ("embeddings.position_embeddings",),
        "text_embedding.segments": ("embeddings.token_type_embeddings",),
        "pooler.dense": ("pooler.dense",),
    }


def _bert_encoder_names(encoder: Encoder, ours: str, theirs: str) -> Names:
    names: Names = {}
    for number in range(len(encoder.blocks)):
        block, layer = f"{ours}.blocks.{number}", f"{theirs}.{number}"
        names |= _bert_attention_names(
            f"{block}.self_attention", f"{layer}.attention.self", f"{layer}.attention.output"
        )
        names |= _bert_feedforward_names(f"{block}.feedforward", f"{layer}.intermediate", f"{layer}.output")
    return names


def _bert_attention_names(ours: str, theirs: str, output: str) -> Names:
    return {
        f"{ours}.attention.query_key_value": (f"{theirs}.query", f"{theirs}.key", f"{theirs}.value"),
        f"{ours}.attention.output": (f"{output}.dense",),
        f"{ours}.norm": (f"{output}.LayerNorm",),
    }


def _bert_feedforward_names(ours: str, inner: str, output: str) -> Names:
    return {
        f"{ours}.inner": (f"{inner}.dense",),
        f"{ours}.output": (f"{output}.dense",),
        f"{ours}.norm": (f"{output}.LayerNorm",),
    }


# ---- VisualBERT


def _build_visualbert(config: Config) -> VisualBert:
    defaults = {"visual_embedding_dim": 512, "num_hidden_layers": 12, "layer_norm_eps": BERT.eps}
    config = _BERT_DEFAULTS | defaults | {"bypass_transformer": False} | config
    _require(config, "config.json", layer_norm_eps=BERT.eps, bypass_transformer=False)
    return VisualBert(
        vision=Regions(feature_size=config["visual_embedding_dim"]),
        layers=config["num_hidden_layers"],
        **_bert_arguments(config),
    )


def _visualbert_config(model: VisualBert) -> Config:
    assert isinstance(model.visual_embedding, PaperVisualEmbedding)
    if model.visual_embedding.boxes.weight.any():
        raise ValueError("visual_embedding.boxes.weight isn't zero: transformers' VisualBERT can't read boxes")
    return _bert_config(model, model.encoder) | {
        "model_type": "visual_bert",
        "architectures": ["VisualBertModel"],
        "visual_embedding_dim": model.vision.feature_size,
        "num_hidden_layers": len(model.encoder.blocks),
    }


def _visualbert_names(model: VisualBert) -> Names:
    return {
        **_bert_text_names(),
        "norm": ("embeddings.LayerNorm",),
        "visual_embedding.features": ("embeddings.visual_projection",),
        "visual_embedding.positions": ("embeddings.visual_position_embeddings",),
        "visual_embedding.segments": ("embeddings.visual_token_type_embeddings",),
        **_bert_encoder_names(model.encoder, "encoder", "encoder.layer"),
    }


# ---- LXMERT


def _build_lxmert(config: Config) -> Lxmert:
    defaults = {"l_layers": 9, "r_layers": 5, "x_layers": 5, "visual_feat_dim": 2048, "visual_pos_dim": 4}
    config = _BERT_DEFAULTS | defaults | config
    _require(config, "config.json", visual_pos_dim=4)
    return Lxmert(
        vision=Regions(feature_size=config["visual_feat_dim"]),
        text_layers=config["l_layers"],
        image_layers=config["r_layers"],
        cross_layers=config["x_layers"],
        **_bert_arguments(config),
    )


def _lxmert_config(model: Lxmert) -> Config:
    return _bert_config(model, model.text_encoder) | {
        "model_type": "lxmert",
        "architectures": ["LxmertModel"],
        "visual_feat_dim": model.vision.feature_size,
        "visual_pos_dim": 4,
        "l_layers": len(model.text_encoder.blocks),
        "r_layers": len(model.image_encoder.blocks),
        "x_layers": len(model.cross_layers),
    }


def _lxmert_names(model: Lxmert) -> Names:
    names: Names = {
        **_bert_text_names(),
        "text_norm": ("embeddings.LayerNorm",),
        "visual_embedding.features": ("encoder.visn_fc.visn_fc",),
        "visual_embedding.feature_norm": ("encoder.visn_fc.visn_layer_norm",),
        "visual_embedding.boxes": ("encoder.visn_fc.box_fc",),
        "visual_embedding.box_norm": ("encoder.visn_fc.box_layer_norm",),
        **_bert_encoder_names(model.text_encoder, "text_encoder", "encoder.layer"),
        **_bert_encoder_names(model.image_encoder, "image_encoder", "encoder.r_layers"),
    }
    for number in range(len(model.cross_layers)):
        ours, theirs = f"cross_layers.{number}", f"encoder.x_layers.{number}"
        cross = f"{theirs}.visual_attention"
        names |= _bert_attention_names(f"{ours}.cross_attention", f"{cross}.att", f"{cross}.output")
        for kind, short in (("text", "lang"), ("image", "visn")):
            block, attention = f"{ours}.{kind}_block", f"{theirs}.{short}_self_att"
            names |= _bert_attention_names(f"{block}.self_attention", f"{attention}.self", f"{attention}.output")
            names |= _bert_feedforward_names(
                f"{block}.feedforward", f"{theirs}.{short}_inter", f"{theirs}.{short}_output"
            )
    return names


# ---- CLIP


_PATCH_WEIGHT = "vision_model.embeddings.patch_embedding.weight"
_CLIP_TEXT_DEFAULTS: Config = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": CLIP.eps,
}
_CLIP_VISION_DEFAULTS: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": CLIP.eps,
    "attention_dropout": 0.0,
}


def _build_clip(config: Config) -> Clip:
    text = _part(config, "text_config", _CLIP_TEXT_DEFAULTS)
    vision = _part(config, "vision_config", _CLIP_VISION_DEFAULTS)
    for where, part in (("text_config", text), ("vision_config", vision)):
        _require(part, f"config.json: {where}", hidden_act="quick_gelu", layer_norm_eps=CLIP.eps)
    _require(vision, "config.json: vision_config", num_channels=3)
    for key in ("image_size", "patch_size"):
        if not isinstance(vision[key], int):
            raise ValueError(
                f"config.json: vision_config: {key}={vision[key]!r} isn't supported, only one whole number"
            )
    return Clip(
        vision=Patches(patch_size=vision["patch_size"], image_size=vision["image_size"]),
        vocab_size=text["vocab_size"],
        max_text_length=text["max_position_embeddings"],
        width=vision["hidden_size"],
        image_layers=vision["num_hidden_layers"],
        text_layers=text["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        feedforward=vision["intermediate_size"],
        text_width=text["hidden_size"],
        text_heads=text["num_attention_heads"],
        text_feedforward=text["intermediate_size"],
        dropout=vision["attention_dropout"],
        embedding_size=config.get("projection_dim", 512),
        block="paper",
    )


def _part(config: Config, key: str, defaults: Config) -> Config:
    """One tower's configuration; the first CLIP checkpoints have it once more, as `..._dict`, and that one holds."""
    newer = config.get(f"{key}_dict")
    return defaults | (config.get(key) or {}) | ({} if newer is None else defaults | newer)


def _clip_config(model: Clip) -> Config:
    if not isinstance(model.vision, Patches):
        raise ValueError(f"vision={type(model.vision).__name__}: transformers' CLIP reads patches only")
    embedding_size = model.embedding.image_projection.out_features
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": embedding_size,
        "text_config": {
            **_tower_config(model.text_encoder, model, embedding_size),
            "model_type": "clip_text_model",
            "vocab_size": model.word_embeddings.num_embeddings,
            "max_position_embeddings": model.text_embedding.positions.num_embeddings,
            "eos_token_id": model.word_embeddings.num_embeddings - 1,
        },
        "vision_config": {
            **_tower_config(model.image_encoder, model, embedding_size),
            "model_type": "clip_vision_model",
            "image_size": model.vision.image_size,
            "patch_size": model.vision.patch_size,
        },
    }


def _tower_config(encoder: Encoder, model: Clip, embedding_size: int) -> Config:
    return {
        "hidden_size": encoder.width,
        "intermediate_size": encoder.feedforward,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.heads,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": CLIP.eps,
        "attention_dropout": model.dropout.p,
        "projection_dim": embedding_size,
    }


def _clip_names(model: Clip) -> Names:
    names: Names = {
        "word_embeddings": ("text_model.embeddings.token_embedding",),
        "text_embedding.positions": ("text_model.embeddings.position_embedding",),
        "text_encoder.norm": ("text_model.final_layer_norm",),
        "class_token": ("vision_model.embeddings.class_embedding",),
        "visual_embedding.features": ("vision_model.embeddings.patch_embedding",),
        "image_positions": ("vision_model.embeddings.position_embedding",),
        "image_norm": ("vision_model.pre_layrnorm",),  # sic
        "image_encoder.norm": ("vision_model.post_layernorm",),
        "embedding.image_projection": ("visual_projection",),
        "embedding.text_projection": ("text_projection",),
        "embedding.logit_scale": ("logit_scale",),
    }
    towers = (
        ("text_encoder", model.text_encoder, "text_model"),
        ("image_encoder", model.image_encoder, "vision_model"),
    )
    for ours, encoder, theirs in towers:
        for number in range(len(encoder.blocks)):
            block, layer = f"{ours}.blocks.{number}", f"{theirs}.encoder.layers.{number}"
            attention = f"{layer}.self_attn"
            names |= {
                f"{block}.self_attention.attention.query_key_value": (
                    f"{attention}.q_proj",
                    f"{attention}.k_proj",
                    f"{attention}.v_proj",
                ),
                f"{block}.self_attention.attention.output": (f"{attention}.out_proj",),
                f"{block}.self_attention.norm": (f"{layer}.layer_norm1",),
                f"{block}.feedforward.inner": (f"{layer}.mlp.fc1",),
                f"{block}.feedforward.output": (f"{layer}.mlp.fc2",),
                f"{block}.feedforward.norm": (f"{layer}.layer_norm2",),
            }
    return names


@dataclass(frozen=True)
class _Format:
    """How transformers writes one architecture down."""

    architecture: type[Model]
    prefix: str  # of the model's tensors in a checkpoint with a head
    build: Callable[[Config], Model]
    config: Callable[[Any], Config]
    names: Callable[[Any], Names]


_FORMATS = {
    "visual_bert": _Format(VisualBert, "visual_bert.", _build_visualbert, _visualbert_config, _visualbert_names),
    "lxmert": _Format(Lxmert, "lxmert.", _build_lxmert, _lxmert_config, _lxmert_names),
    "clip": _Format(Clip, "clip.", _build_clip, _clip_config, _clip_names),
}
