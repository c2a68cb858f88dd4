"""Image-text retrieval: recall at k in both directions, over a gallery of U images and B texts.

`i2t_r@k` is the share of images that find one of their texts among the k most similar ones, `t2i_r@k` the share of
texts that find their image (Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4.1). Any text of the image counts,
and images may have different numbers of them.

Where similarities are equal, recall is its expected value under a random order of the equal ones. Counting only what
is strictly better would give a collapsed model 100 %, counting equals as better 0 %; the expected value is chance, k/N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from multimodal.metrics.examples import all_reduce_max, check_complete, check_ids

_CHUNK = 1 << 24  # similarities compared at once: bounds the memory to a few times this many bytes


def retrieval_recall(similarity: Tensor, image_of_text: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall where each text belongs to one image.

    Args:
        similarity: `float[U, B]`, higher is closer. Compute it in fp32: bf16 similarities are full of ties.
        image_of_text: `int[B]`, the image of each text. An image without texts stays in the gallery of texts' searches
            and makes no search of its own.
        ks: numbers of retrieved candidates; one larger than the gallery means the whole gallery.

    Returns:
        `{"i2t_r@1": ..., "t2i_r@1": ...}` for every k, in 0..1.

    Raises:
        ValueError: shapes that don't fit, NaN, an image out of range, an empty gallery, or a k below 1.
    """
    if similarity.ndim != 2 or image_of_text.shape != similarity.shape[1:]:
        raise ValueError(
            f"similarity {list(similarity.shape)} must be [U, B] and image_of_text {list(image_of_text.shape)} [B]"
        )
    check_ids("image_of_text", image_of_text, len(similarity))
    images = torch.arange(len(similarity), device=similarity.device)
    return recall(similarity, images[:, None] == image_of_text.to(similarity.device), ks)


def recall(similarity: Tensor, relevant: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall where a text may be true of several images: finding any of them is a hit.

    Args:
        similarity: `float[U, B]`.
        relevant: `bool[U, B]`. An image or text to which nothing is relevant makes no search.
        ks: as in `retrieval_recall`.

    Raises:
        ValueError: shapes that don't fit, NaN, nothing relevant at all, or a k below 1.
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"ks={list(ks)} has a k below 1")
    standings = _both_standings(similarity, relevant)
    return {f"{direction}_r@{k}": _recall_at(k, standing) for direction, standing in standings.items() for k in ks}


def ties(similarity: Tensor, relevant: Tensor) -> dict[str, int]:
    """Number of searches whose best right candidate is tied with a wrong one: `{"i2t_ties": ..., "t2i_ties": ...}`.

    Many of them mean that similarities have collapsed or were computed in too low a precision.

    Args:
        similarity: `float[U, B]`.
        relevant: `bool[U, B]`.

    Raises:
        ValueError: shapes that don't fit, NaN, or nothing relevant at all.
    """
    standings = _both_standings(similarity, relevant)
    return {
        f"{direction}_ties": int((standing[:, 1] > standing[:, 2]).sum()) for direction, standing in standings.items()
    }


def role_swap_accuracy(similarity: Tensor, image_of_text: Tensor, swapped: Tensor) -> float:
    """Share of captions that are closer to their own image than the caption with the roles exchanged is, ties 1/2.

    A model that reads a caption as a bag of words scores 1/2, whatever its recall (Thrush et al. 2022, Winoground,
    arXiv:2204.03162, text score).

    Args:
        similarity: `float[U, B]`.
        image_of_text: `int[B]`, the image of each caption.
        swapped: `int[B]`, column of the exchanged caption, -1 for captions that have none and are left out.

    Raises:
        ValueError: shapes that don't fit, NaN, an index out of range, or no caption has a swapped form.
    """
    if similarity.ndim != 2 or not image_of_text.shape == swapped.shape == similarity.shape[1:]:
        raise ValueError(
            f"similarity {list(similarity.shape)} must be [U, B], "
            f"image_of_text {list(image_of_text.shape)} and swapped {list(swapped.shape)} [B]"
        )
    _check_no_nan(similarity)
    check_ids("image_of_text", image_of_text, len(similarity))
    caption = (swapped != -1).nonzero().flatten()
    check_ids("swapped", swapped[caption], len(swapped))
    if not len(caption):
        raise ValueError("swapped is -1 everywhere: no caption has a form with the roles exchanged")
    image = image_of_text[caption]
    own, other = similarity[image, caption], similarity[image, swapped[caption]]
    return int(2 * (own > other).sum() + (own == other).sum()) / (2 * len(caption))


def _both_standings(similarity: Tensor, relevant: Tensor) -> dict[str, Tensor]:
    if similarity.ndim != 2 or similarity.shape != relevant.shape or relevant.dtype != torch.bool:
        raise ValueError(
            f"similarity {list(similarity.shape)} and relevant {relevant.dtype}{list(relevant.shape)} "
            "must be float[U, B] and bool[U, B]"
        )
    if not relevant.any():
        raise ValueError(f"nothing is relevant among {len(similarity)} images and {similarity.shape[1]} texts")
    _check_no_nan(similarity)
    relevant = relevant.to(similarity.device)
    return {"i2t": _standings(similarity, relevant), "t2i": _standings(similarity.T, relevant.T)}


def _check_no_nan(similarity: Tensor) -> None:
    if similarity.numel() and similarity.amax().isnan():  # the maximum of NaN and anything is NaN
        raise ValueError("similarity has NaN")


def _standings(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Where the best right candidate of each search stands: `int[S, 3]` of candidates above it, level, level and right.

    Nothing else matters: right candidates with a lower score can only be found after that one.

    Args:
        similarity: `float[Q, C]`, a row a search.
        relevant: `bool[Q, C]`; rows without a right candidate are dropped, which leaves S.
    """
    rows = max(1, _CHUNK // similarity.shape[1])
    parts = []
    for scores, right in zip(similarity.split(rows), relevant.split(rows), strict=True):
        asked = right.any(1)
        scores, right = scores[asked].to(torch.promote_types(scores.dtype, torch.float32)), right[asked]
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        level = scores == best
        parts.append(torch.stack([(scores > best).sum(1), level.sum(1), (level & right).sum(1)], 1))
    return torch.cat(parts).cpu()


def _recall_at(k: int, standing: Tensor) -> float:
    """Mean probability that a right candidate is among the first k, in a random order of the level ones.

    With g above and t level, of which p are right, the first k hold s = clamp(k - g, 0, t) of the level ones, and
    none of the p right ones with probability C(t-p, s) / C(t, s).
    """
    above, level, right = standing.unbind(1)
    taken = torch.minimum((k - above).clamp(min=0), level)
    # That probability is symmetric in s and p: take the smaller one by one and ask if it meets the larger. Unlike
    # 1 - C/C this needs no large factorials and is s/t to the last bit where p is 1.
    few, many = torch.minimum(taken, right), torch.maximum(taken, right).double()
    hit = torch.zeros_like(many)
    for i in range(int(few.max())):
        hit = torch.where(i < few, hit + (1 - hit) * (many / (level - i)), hit)
    # Equal values are weighted, not added up one by one: constant similarity gives k/N to the last bit.
    values, counts = hit.unique(return_counts=True)
    return math.fsum(value * (count / len(hit)) for value, count in zip(values.tolist(), counts.tolist(), strict=True))


class RetrievalRecall(Metric):
    """Recall over a gallery of U images and B texts whose texts are spread over ranks, in uneven numbers or repeated.

    The state is the whole `float[U, B]` on every rank: half a gigabyte for the 5,000 images of COCO's test split.

    Args:
        relevant: `bool[U, B]`, as in `recall`.
        ks: as in `recall`.
    """

    full_state_update = False
    similarity: Tensor  # float[U, B]
    seen: Tensor  # int[B]  1 where the text came

    def __init__(self, relevant: Tensor, ks: Sequence[int] = (1, 5, 10)) -> None:
        super().__init__(dist_sync_fn=all_reduce_max)
        self.relevant = relevant
        self.ks = tuple(ks)
        self.add_state("similarity", torch.full(relevant.shape, -torch.inf), dist_reduce_fx="max")
        self.add_state("seen", torch.zeros(relevant.shape[1], dtype=torch.int32), dist_reduce_fx="max")

    def update(self, text_id: Tensor, similarity: Tensor) -> None:
        """Take b texts, each with its similarity to all images.

        Args:
            text_id: `int[b]`, columns of `relevant`.
            similarity: `float[U, b]`, kept in fp32.

        Raises:
            ValueError: a shape that doesn't fit, a text id out of range, or NaN.
        """
        check_ids("text_id", text_id, len(self.seen))
        if similarity.shape != (len(self.similarity), len(text_id)):
            raise ValueError(
                f"similarity {list(similarity.shape)} must be [{len(self.similarity)}, {len(text_id)}]: "
                "all images, and the texts of text_id"
            )
        _check_no_nan(similarity)
        text_id = text_id.to(self.seen.device)
        self.similarity[:, text_id] = similarity.to(self.similarity)
        self.seen[text_id] = 1

    def compute(self) -> dict[str, float]:
        """Recall at every k in both directions, as `recall` returns it.

        Raises:
            ValueError: some text never came, on no rank.
        """
        check_complete("texts", self.seen.bool())
        return recall(self.similarity, self.relevant, self.ks)

    def full_similarity(self) -> Tensor:
        """The similarities that all ranks brought together, `float[U, B]`. Every rank must call it.

        Raises:
            ValueError: some text never came, on no rank.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            similarity, seen = self.similarity.clone(), self.seen.bool()
        check_complete("texts", seen)
        return similarity
