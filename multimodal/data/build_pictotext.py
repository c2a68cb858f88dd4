"""Build the embedded drawings anew from the npm packages they come from.

    python -m multimodal.data.build_pictotext [--packs DIR] [--out DIR]

Takes about four minutes. Needs npm (only for packages that are not in DIR yet) and the dev extra. Two
runs on one machine give the same bytes. Another version of cairo, libwebp or PyTorch may round differently; the
manifest names those that made the committed files. Written by hand: nouns.tsv, NOTICE and licenses/.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cairosvg
import numpy as np
import PIL
import torch
from PIL import Image, features

from multimodal.data.features import Lite0
from multimodal.data.pictotext import ASSETS, CELL, COLUMNS, STYLES, cache_folder, read_drawings

VERSION = 1

# npm package, version, SHA-256 of the archive that `npm pack` gives
_SOURCES = {
    "noto": ("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "fluent": (
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    "fluent-flat": (
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "emojione": ("@iconify-json/emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "openmoji": (
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),  # its names of code points, none of its drawings
    "emojibase": ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
}
_NAMES_FROM = ("noto", "twemoji", "openmoji", "fluent-flat")  # packages that say which code point an icon draws

_RENDER = 256  # pixels; a drawing is cut to its ink and scaled down from there
_VISIBLE = 16  # alpha from which a pixel is ink
_WEBP_QUALITY = 75
_SPLIT_SHARES = (("train", 0.7), ("val", 0.8), ("test", 1.0))  # upper ends

# The everyday word for what a subgroup holds, where there is one. nouns.tsv goes before.
_KINDS = {
    "face": (
        *("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy"),
        *("face-unwell", "face-hat", "face-glasses", "face-concerned"),
    ),
    "hand": (
        *("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed", "hands"),
        "hand-prop",
    ),
    "person": (
        *("person", "person-gesture", "person-role", "person-fantasy", "person-activity", "person-sport"),
        *("person-resting", "family"),
    ),
    "animal": (*("animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug"),),
    "plant": ("plant-flower", "plant-other"),
    "food": ("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet"),
    "drink": ("drink",),
    "building": ("place-building", "place-religious"),
    "vehicle": ("transport-ground", "transport-water", "transport-air"),
    "clock": ("time",),
    "sports item": ("sport",),
    "garment": ("clothing",),
    "instrument": ("musical-instrument",),
    "device": ("phone",),
    "household item": ("household",),
    "symbol": (
        *("transport-sign", "warning", "arrow", "religion", "zodiac", "av-symbol", "gender", "math", "punctuation"),
        *("currency", "other-symbol", "keycap", "alphanum", "geometric"),
    ),
}
_NO_KIND = frozenset(
    (
        *("pig nose", "paw prints", "feather", "wing", "spider web", "spiral shell", "coral", "microbe"),
        *("rosette", "empty nest", "nest with eggs", "baby bottle", "pouring liquid", "ice", "building construction"),
        *("brick", "rock", "wood", "wedding", "Statue of Liberty", "station", "bus stop", "motorway", "railway track"),
        *("oil drum", "fuel pump", "wheel", "police car light", "horizontal traffic light", "vertical traffic light"),
        *("stop sign", "construction", "anchor", "ring buoy", "parachute", "seat", "hourglass done"),
        *("hourglass not done", "glasses", "sunglasses", "goggles", "folding hand fan", "purse", "handbag"),
        *("clutch bag", "shopping bags", "backpack", "hair pick", "crown", "prayer beads", "lipstick", "ring"),
        *("gem stone", "goal net", "flag in hole", "running shirt", "martial arts uniform", "mushroom"),
    )
)

# Concepts of one family are drawn alike, so they stand in one split, and naming one for another is a hit.
_PERSON_WORDS = frozenset(("man", "woman", "men", "women", "person", "people", "boy", "girl", "child"))
_SIZE_WORDS = frozenset(("large", "medium", "medium-small", "small"))
_FAMILY = {
    "santa claus": "claus",
    "mrs. claus": "claus",
    "mx claus": "claus",
    "prince": "with crown",
    "princess": "with crown",
    "old man": "older person",
    "old woman": "older person",
    "older person": "older person",
    "merman": "merperson",
    "mermaid": "merperson",
    "grinning cat": "cat",
    "dotted six-pointed star": "star of david",
}


@dataclass(frozen=True)
class Icons:
    """One npm package of icons."""

    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]
    size: tuple[int, int]
    names: dict[str, str]  # code points to icon; empty for packages that don't say

    def root(self, name: str) -> tuple[str, bool]:
        """The icon behind an alias, and whether it is mirrored."""
        mirrored = False
        while name in self.aliases:
            mirrored ^= bool(self.aliases[name].get("hFlip"))
            name = self.aliases[name]["parent"]
        return name, mirrored

    def svg(self, name: str) -> bytes:
        """An icon that is no alias, as a file."""
        icon = self.icons[name]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {spaces} viewBox="{box}" width="{width}" height="{height}">{icon["body"]}</svg>'.encode()


def main() -> None:
    """Build into a folder."""
    parser = argparse.ArgumentParser(description="Build the PictoText assets from npm packages.")
    parser.add_argument("--packs", type=Path, default=cache_folder() / "packs", help="folder of the npm archives")
    parser.add_argument("--out", type=Path, default=ASSETS, help="where to write")
    arguments = parser.parse_args()
    build(arguments.packs, arguments.out)


def build(packs: Path, out: Path) -> None:
    """Write concepts.jsonl, a sheet of drawings for each style, features.npy and manifest.json.

    Raises:
        ValueError: an npm archive is not the expected one.
    """
    out.mkdir(parents=True, exist_ok=True)
    archives = {name: _archive(packs, *source) for name, source in _SOURCES.items()}
    concepts = _concepts(archives["emojibase"])
    drawings = _drawings({name: _icons(path) for name, path in archives.items() if name != "emojibase"}, concepts)
    for style in STYLES:
        _save_sheet(out / f"{style}.webp", drawings[style].values())
    place = {style: {concept: cell for cell, concept in enumerate(drawings[style])} for style in STYLES}
    for concept in concepts:
        code = concept["id"]
        drawn = [style for style in STYLES if code in drawings[style]]
        concept["drawings"] = {style: [place[style][code], *drawings[style][code].size] for style in drawn}
    lines = [json.dumps(concept, ensure_ascii=False, separators=(",", ":")) + "\n" for concept in concepts]
    (out / "concepts.jsonl").write_text("".join(lines), encoding="utf-8")

    art = read_drawings(out)
    things = [row for row, concept in enumerate(art.concept) if art.concepts[concept].noun]
    np.save(out / "features.npy", Lite0().extract(np.stack([art.square(row) for row in things])))
    counts = {
        "concepts": len(concepts),
        "families": len({concept["family"] for concept in concepts}),
        "things": sum(concept["noun"] != "" for concept in concepts),
        "drawings": len(art.concept),
        "drawings_of_things": len(things),
    }
    _write_manifest(out, ["concepts.jsonl", *(f"{style}.webp" for style in STYLES), "features.npy"], counts)


def _archive(packs: Path, package: str, version: str, sha256: str) -> Path:
    """Path of an npm archive, packed by npm into the folder if it isn't there."""
    path = packs / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        packs.mkdir(parents=True, exist_ok=True)
        print(f"npm pack {package}@{version}", file=sys.stderr)
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=packs, check=True, stdout=sys.stderr)
    if (found := _sha256(path)) != sha256:
        raise ValueError(f"{path}: SHA-256 is {found}, but this builder was written for {sha256}")
    return path


def _members(archive: Path, *names: str) -> list[Any]:
    """Some JSON files of an npm archive."""
    with tarfile.open(archive) as packed:
        files = [packed.extractfile(f"package/{name}") for name in names]
        return [json.load(file) for file in files if file is not None]


def _icons(archive: Path) -> Icons:
    icons, names = _members(archive, "icons.json", "chars.json")
    size = (icons.get("width", 16), icons.get("height", 16))
    return Icons(icons["icons"], icons.get("aliases", {}), size, {_code(key): name for key, name in names.items()})


def _code(code_points: str) -> str:
    """Code points without the variation selector, which sources set differently."""
    return "-".join(part for part in code_points.lower().split("-") if part != "fe0f")


def _concepts(archive: Path) -> list[dict[str, Any]]:
    """One row a concept, without its drawings, in Unicode's order. Skin tones are variants there, not entries."""
    entries, groups = _members(archive, "en/data.json", "meta/groups.json")
    with tarfile.open(archive) as packed:
        locales = sorted(n.split("/")[1] for n in packed.getnames() if n.endswith("/data.json") and "/en/" not in n)
    labels = {
        locale: {entry["hexcode"]: entry["label"] for entry in _members(archive, f"{locale}/data.json")[0]}
        for locale in locales
    }
    nouns = _nouns()
    dropped = {"component", "flags"}
    entries = [e for e in entries if "group" in e and groups["groups"][str(e["group"])] not in dropped]
    known = {entry["label"] for entry in entries}
    assert not nouns.keys() - known, f"nouns.tsv names unknown concepts: {nouns.keys() - known}"
    concepts = []
    for entry in sorted(entries, key=lambda entry: int(entry["order"])):
        group = groups["groups"][str(entry["group"])]
        family = _family(entry["label"], group, known)
        subgroup = groups["subgroups"][str(entry["subgroup"])]
        kind = next((kind for kind, subgroups in _KINDS.items() if subgroup in subgroups), "")
        words = {"kind": "" if entry["label"] in _NO_KIND else kind, "noun": "", "article": "", "plural": ""}
        words |= nouns.get(entry["label"], {})
        concept = {
            "id": _code(entry["hexcode"]),
            "label": entry["label"],
            "tags": entry.get("tags", []),
            "group": group,
            "subgroup": subgroup,
            "family": family,
            "split": _split(family),
            **words,
            "kinds": {"": "", "person": "people"}.get(words["kind"], words["kind"] + "s"),
            "labels": {
                locale: labels[locale][entry["hexcode"]] for locale in locales if entry["hexcode"] in labels[locale]
            },
        }
        concepts.append(concept)
    return concepts


def _nouns() -> dict[str, dict[str, str]]:
    """The hand-made list of things for scenes: label to noun, its forms and its kind."""
    header, *rows = (line.split("\t") for line in (ASSETS / "nouns.tsv").read_text(encoding="utf-8").splitlines())
    nouns = {}
    for row in rows:
        values = dict(zip(header, row, strict=True))
        article, _, noun = values["singular"].partition(" ")
        plural, kind = values["plural"], values["kind"]
        nouns[values["label"]] = {"kind": kind, "noun": noun, "article": article, "plural": plural}
    return nouns


def _family(label: str, group: str, labels: set[str]) -> str:
    """What a concept shares with those that are drawn like it."""
    name = label.lower()
    if name in _FAMILY:
        return _FAMILY[name]
    if group == "people-body":  # "family: woman, boy", "person walking: facing right"
        words = [word for word in name.partition(":")[0].split() if word not in _PERSON_WORDS]
        return " ".join(words).removeprefix("and ") or "person"
    if name.endswith(" face") and name.removesuffix(" face") in labels:
        name = name.removesuffix(" face")
    return " ".join(word for word in name.removeprefix("oncoming ").split() if word not in _SIZE_WORDS)


def _split(family: str) -> str:
    place = int(hashlib.sha256(family.encode()).hexdigest()[:8], 16) / 16**8
    return next(split for split, end in _SPLIT_SHARES if place < end)


def _drawings(packages: dict[str, Icons], concepts: list[dict[str, Any]]) -> dict[str, dict[str, Image.Image]]:
    """All drawings, cut and scaled, by style and concept in the order of the concepts."""
    slugs: dict[str, list[str]] = {}
    for package in _NAMES_FROM:
        for code, name in packages[package].names.items():
            slugs.setdefault(code, []).append(name)
    drawings: dict[str, dict[str, Image.Image]] = {style: {} for style in STYLES}
    for style in STYLES:
        for concept, (name, mirrored) in _match(packages[style], concepts, slugs).items():
            picture = _render(packages[style].svg(name), mirrored)
            if picture is None:
                print(f"{style}: {concept} can't be rendered", file=sys.stderr)
            else:
                drawings[style][concept] = picture
    return drawings


def _match(package: Icons, concepts: list[dict[str, Any]], slugs: dict[str, list[str]]) -> dict[str, tuple[str, bool]]:
    """Which icon draws each concept, and whether mirrored.

    By code point, or by the names that other packages have for the code point. Where names lead two concepts to one
    drawing (cricket the insect and the game), the one keeps it whose own name the drawing has.
    """
    found: dict[str, tuple[str, bool]] = {}
    owner: dict[tuple[str, bool], str] = {}
    for concept in concepts:
        code, slug = concept["id"], re.sub(r"[^a-z0-9]+", "-", concept["label"].lower().replace("’", "")).strip("-")  # noqa: RUF001
        names = [package.names[code]] if code in package.names else []
        if not package.names:
            names = [n for n in (*slugs.get(code, []), slug) if n in package.icons or n in package.aliases]
        if not names:
            continue
        icon = package.root(names[0])
        if icon in owner:
            if icon[0] != slug:
                continue
            del found[owner[icon]]
        found[code], owner[icon] = icon, code
    return found


def _render(svg: bytes, mirrored: bool) -> Image.Image | None:
    """A drawing on white, cut to its ink, its longer side scaled to the cell; none if cairo fails on it."""
    try:
        png = cairosvg.svg2png(bytestring=svg, output_width=_RENDER, output_height=_RENDER)
    except MemoryError:  # two drawings with a degenerate gradient
        return None
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha >= _VISIBLE)).getbbox())
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    scale = CELL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return paper.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _save_sheet(path: Path, pictures: Iterable[Image.Image]) -> None:
    """Drawings in the middle of square cells, row after row."""
    pictures = list(pictures)
    sheet = Image.new("RGB", (COLUMNS * CELL, -(-len(pictures) // COLUMNS) * CELL), "white")
    for place, picture in enumerate(pictures):
        x, y = place % COLUMNS * CELL, place // COLUMNS * CELL
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
    sheet.save(path, "WEBP", quality=_WEBP_QUALITY, method=6)


def made_with() -> dict[str, str]:
    """What may make a difference to the bytes."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cairo": cairosvg.surface.cairo.cairo_version_string(),
        "cairosvg": cairosvg.__version__,
        "pillow": PIL.__version__,
        "libwebp": str(features.version("webp")),
        "torch": torch.__version__,
        "timm": importlib.metadata.version("timm"),
    }


def _write_manifest(out: Path, names: Iterable[str], counts: dict[str, int]) -> None:
    manifest = {
        "version": VERSION,
        "sources": {package: {"version": version, "sha256": sha256} for package, version, sha256 in _SOURCES.values()},
        "made_with": made_with(),
        "counts": counts,
        "files": {name: {"bytes": (out / name).stat().st_size, "sha256": _sha256(out / name)} for name in names},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
