"""With the same weights, the papers' blocks compute what transformers computes: outputs and gradients, both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from multimodal.models.lxmert import Lxmert
from multimodal.models.vision import StandardisedRegions
from multimodal.models.visualbert import VisualBert
from multimodal.models.weights import load_transformers, save_transformers
from multimodal.types import Pixels, Regions, TextInput
from tests.models.make import FEATURE_SIZE, VOCAB_SIZE, lengths_to_mask, make_model

VISUALBERT = [
    {
        "vocab_size": 53, "hidden_size": 36, "visual_embedding_dim": 17, "num_hidden_layers": 3,
        "num_attention_heads": 3, "intermediate_size": 55, "max_position_embeddings": 23, "pad_token_id": 0,
    },
    {
        "vocab_size": 31, "hidden_size": 20, "visual_embedding_dim": 44, "num_hidden_layers": 1,
        "num_attention_heads": 5, "intermediate_size": 12, "max_position_embeddings": 9, "type_vocab_size": 5,
        "special_visual_initialize": False,
    },
]  # fmt: skip
LXMERT = [
    {
        "vocab_size": 53, "hidden_size": 36, "visual_feat_dim": 17, "l_layers": 3, "r_layers": 1, "x_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 55, "max_position_embeddings": 23,
    },
    {
        "vocab_size": 31, "hidden_size": 20, "visual_feat_dim": 44, "l_layers": 0, "r_layers": 2, "x_layers": 1,
        "num_attention_heads": 5, "intermediate_size": 12, "max_position_embeddings": 9, "type_vocab_size": 3,
    },
]  # fmt: skip
CLIP = [
    {
        "projection_dim": 19,
        "text_config": {
            "vocab_size": 53, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3,
            "intermediate_size": 55, "max_position_embeddings": 23, "eos_token_id": 2, "bos_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 33,
            "image_size": 32, "patch_size": 8,
        },
    },
    {
        "projection_dim": 40,
        "text_config": {
            "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 40, "max_position_embeddings": 9, "eos_token_id": 7, "bos_token_id": 3,
        },
        "vision_config": {
            "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 7, "intermediate_size": 18,
            "image_size": 50, "patch_size": 7,
        },
    },
]  # fmt: skip
CASES = (
    [pytest.param("VisualBert", config, id=f"visualbert-{number}") for number, config in enumerate(VISUALBERT)]
    + [pytest.param("Lxmert", config, id=f"lxmert-{number}") for number, config in enumerate(LXMERT)]
    + [pytest.param("CLIP", config, id=f"clip-{number}") for number, config in enumerate(CLIP)]
)
BERT_CASES = CASES[:4]
CLIP_CASES = CASES[4:]


def make_reference(name: str, config: dict) -> torch.nn.Module:
    """A random model of transformers whose every parameter matters: biases and norms aren't 0 and 1."""
    torch.manual_seed(0)
    settings = getattr(transformers, f"{name}Config")(**config)
    model = getattr(transformers, f"{name}Model")._from_config(settings, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_text(config: dict) -> TextInput:
    """Three texts of 7, 4 and 2 tokens."""
    text = config.get("text_config", config)
    mask = lengths_to_mask([7, 4, 2])
    ids = torch.randint(8, text["vocab_size"] - 1, mask.shape)
    eos = text.get("eos_token_id", 2)
    end = text["vocab_size"] - 1 if eos == 2 else eos  # 2: the old rule, [end] is the highest id of a text
    ids = ids.scatter(1, mask.sum(1, keepdim=True) - 1, end)
    return TextInput(ids=ids.masked_fill(~mask, 1), mask=mask)


def make_regions(config: dict) -> Regions:
    """Three images of 3, 1 and 5 regions."""
    mask = lengths_to_mask([3, 1, 5])
    feature_size = config.get("visual_embedding_dim", config.get("visual_feat_dim"))
    corners = torch.rand(3, 5, 4)
    return Regions(features=torch.randn(3, 5, feature_size), boxes=corners, mask=mask)


def make_pixels(config: dict) -> Pixels:
    size = config["vision_config"]["image_size"]
    return Pixels(torch.randn(3, 3, size, size))


def run_bert(model: torch.nn.Module, text: TextInput, image: Regions) -> tuple[Tensor, Tensor, Tensor]:
    """Text states, image states and pooled of transformers' VisualBERT or LXMERT."""
    visual_mask = image.mask.long()
    if isinstance(model, transformers.LxmertModel):
        out = model(
            input_ids=text.ids,
            attention_mask=text.mask.long(),
            visual_feats=image.features,
            visual_pos=image.boxes,
            visual_attention_mask=visual_mask,
        )
        return out.language_output, out.vision_output, out.pooled_output
    out = model(
        input_ids=text.ids,
        attention_mask=text.mask.long(),
        visual_embeds=image.features,
        visual_attention_mask=visual_mask,
    )
    length = text.ids.shape[1]
    return out.last_hidden_state[:, :length], out.last_hidden_state[:, length:], out.pooler_output


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, config", BERT_CASES)
def test_visualbert_and_lxmert_equal_transformers(name: str, config: dict, tmp_path: Path) -> None:
    reference = make_reference(name, config)
    reference.save_pretrained(tmp_path)
    model, report = load_transformers(tmp_path)
    assert isinstance(model, VisualBert | Lxmert)
    assert not report.unexpected
    text, image = make_text(config), make_regions(config)

    with torch.no_grad():
        fused = model.fuse(model.encode_image(image), model.encode_text(text), reads="both")
        text_states, image_states, pooled = run_bert(reference, text, image)

    close(fused.pooled, pooled)
    close(fused.text.states[text.mask], text_states[text.mask])
    close(fused.image.states[image.mask], image_states[image.mask])


@pytest.mark.parametrize("name, config", CLIP_CASES)
def test_clip_equals_transformers(name: str, config: dict, tmp_path: Path) -> None:
    reference = make_reference(name, config)
    reference.save_pretrained(tmp_path)
    model, report = load_transformers(tmp_path)
    assert not report.unexpected
    text, image = make_text(config), make_pixels(config)

    with torch.no_grad():
        encoded_image, encoded_text = model.encode_image(image), model.encode_text(text)
        image_vector = torch.nn.functional.normalize(model.embed_image(encoded_image), dim=-1)
        text_vector = torch.nn.functional.normalize(model.embed_text(encoded_text), dim=-1)
        logits = model.embedding.scale() * image_vector @ text_vector.T
        out = reference(input_ids=text.ids, attention_mask=text.mask.long(), pixel_values=image.pixels)

    close(image_vector, out.image_embeds)
    close(text_vector, out.text_embeds)
    close(logits, out.logits_per_image)
    close(encoded_text.states[text.mask], out.text_model_output.last_hidden_state[text.mask])
    # Ours come after the last norm, which transformers applies to the class token only.
    close(encoded_image.states, reference.vision_model.post_layernorm(out.vision_model_output.last_hidden_state))


def test_gradients_equal_those_of_transformers(tmp_path: Path) -> None:
    """Of every parameter, through every output. Position and segment 0 of their LXMERT can't learn, ours can."""
    reference = make_reference("Lxmert", LXMERT[0])
    reference.save_pretrained(tmp_path / "theirs")
    model, _ = load_transformers(tmp_path / "theirs")
    model, reference = model.double(), reference.double()
    text, image = make_text(LXMERT[0]), make_regions(LXMERT[0])
    image = replace(image, features=image.features.double(), boxes=image.boxes.double())
    weights = torch.randn(3, 36).double()

    fused = model.fuse(model.encode_image(image), model.encode_text(text), reads="both")
    text_states, image_states, pooled = run_bert(reference, text, image)
    for states, seen, pool in (
        (fused.text.states, fused.image.states, fused.pooled),
        (text_states, image_states, pooled),
    ):
        loss = (states[text.mask] ** 2 * weights[0]).sum() + (seen[image.mask] ** 2 * weights[1]).sum()
        (loss + (pool * weights[2]).sum()).backward()

    # The gradients go through the export, as the weights would.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
            else:
                assert name.startswith("embedding.")
    save_transformers(model, tmp_path / "gradients")
    ours = load_file(tmp_path / "gradients" / "model.safetensors")
    for name, parameter in reference.named_parameters():
        rows = slice(1, None) if name.startswith("embeddings.") and "LayerNorm" not in name else slice(None)
        torch.testing.assert_close(ours[name][rows], parameter.grad[rows], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("name, config", CASES)
def test_round_trip(name: str, config: dict, tmp_path: Path) -> None:
    """Theirs to ours to theirs: not a bit of the weights has changed, no key is missing, none unexpected."""
    reference = make_reference(name, config)
    reference.save_pretrained(tmp_path / "theirs")
    model, report = load_transformers(tmp_path / "theirs")
    eos = config.get("text_config", {}).get("eos_token_id")
    left_out = save_transformers(model, tmp_path / "ours", eos_token_id=eos)
    assert left_out == report.missing

    again, info = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    before, after = reference.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)

    text = make_text(config)
    with torch.no_grad():
        if name == "CLIP":
            image = make_pixels(config)
            inputs = {"input_ids": text.ids, "attention_mask": text.mask.long(), "pixel_values": image.pixels}
            close(again(**inputs).logits_per_image, reference(**inputs).logits_per_image)
        else:
            image = make_regions(config)
            for first, second in zip(
                run_bert(again.eval(), text, image), run_bert(reference, text, image), strict=True
            ):
                close(first, second)


@pytest.mark.parametrize("architecture", [VisualBert, Lxmert])
def test_standardised_features_go_into_the_export(architecture: type[torch.nn.Module], tmp_path: Path) -> None:
    """transformers' model takes the features as they are."""
    torch.manual_seed(0)
    model = make_model(architecture, "paper", StandardisedRegions(feature_size=FEATURE_SIZE))
    config = {"vocab_size": VOCAB_SIZE, "visual_feat_dim": FEATURE_SIZE}
    text, image = make_text(config), make_regions(config)
    image = replace(image, features=3 + 5 * image.features)
    model.vision.measure(image)
    save_transformers(model, tmp_path)
    reference = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        fused = model.fuse(model.encode_image(image), model.encode_text(text), reads="both")
        text_states, image_states, pooled = run_bert(reference, text, image)
    close(fused.pooled, pooled)
    close(fused.text.states[text.mask], text_states[text.mask])
    close(fused.image.states[image.mask], image_states[image.mask])


@pytest.mark.parametrize("name, config", CLIP_CASES)
@pytest.mark.parametrize("patches", [3, 9])
def test_clip_at_another_image_size(name: str, config: dict, patches: int, tmp_path: Path) -> None:
    """Positions are interpolated as transformers does; that of the class token stays."""
    reference = make_reference(name, config)
    reference.save_pretrained(tmp_path)
    size = patches * config["vision_config"]["patch_size"] + 2
    model, report = load_transformers(tmp_path, image_size=size)
    assert sum(line.startswith("image_positions.weight: ") for line in report.reshaped) == 1
    pixels = Pixels(torch.randn(2, 3, size, size))
    with torch.no_grad():
        ours = model.embed_image(model.encode_image(pixels))
        theirs = reference.get_image_features(pixels.pixels, interpolate_pos_encoding=True).pooler_output
    close(ours, theirs)
    assert torch.equal(model.image_positions.weight[0], reference.vision_model.embeddings.position_embedding.weight[0])
