"""Image-text retrieval by two scorers that every architecture has: similarity of embeddings, and matching of pairs.

Contrastive loss: Radford et al. 2021 (arXiv:2103.00020). Matching with negatives from the batch, and re-ranking of
the best by embedding: Li et al. 2021 (ALBEF, arXiv:2107.07651), sections 3.2 and 4.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from multimodal.data.dataset import Captions
from multimodal.data.vocabularies import Vocabularies
from multimodal.metrics import recall, role_swap_accuracy
from multimodal.objectives.contrastive import info_nce
from multimodal.objectives.matching import draw_negatives, matching_loss
from multimodal.tasks.base import Step, Task
from multimodal.tasks.optim import Optim
from multimodal.types import Evaluation, Fused, RetrievalBatch, Stream, Tensors


class MatchingHead(nn.Module):
    """From what a model knows of an image and a text to a logit for: they belong together."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.match = nn.Linear(width, 1)

    def forward(self, fused: Fused) -> Tensor:
        """Logits `float[P]`."""
        return self.match(fused.pooled).squeeze(-1)


class Retrieval(Task):
    """Find the image of a caption and the captions of an image.

    Args:
        model: any VisionLanguageModel.
        vocabularies: what its token ids mean.
        optim: learning rate, weight decay and schedule.
        hard_negatives: share of the matching loss's negatives that are drawn by similarity, the rest evenly, 0..1.
        matching_texts: how many texts of a batch the matching loss reads.
        ks: the k of R@k.
        rerank: how many images (or texts) the embedding scorer hands on to the matching scorer.
        pairs_per_chunk: how many pairs are fused at once when scoring; bounds memory.
    """

    table = "captions"

    def __init__(
        self,
        *,
        model: nn.Module,
        vocabularies: Vocabularies,
        optim: Optim,
        hard_negatives: float,
        matching_texts: int,
        ks: list[int],
        rerank: int,
        pairs_per_chunk: int,
    ) -> None:
        super().__init__(model=model, vocabularies=vocabularies, optim=optim)
        self.head = MatchingHead(width=self.model.width)
        self.hard_negatives = hard_negatives
        self.matching_texts = matching_texts
        self.ks = ks
        self.rerank = rerank
        self.pairs_per_chunk = pairs_per_chunk
        self._collected: dict[str, list[tuple[Encoded, Encoded]]] = {}

    def step(self, batch: RetrievalBatch) -> Step:
        """InfoNCE on the embeddings; matching of each pair beside a wrong one."""
        image, text = self.model.encode_image(batch.image), self.model.encode_text(batch.text)
        image_vector = self.model.embed_image(image)[batch.image_of_text]
        text_vector = self.model.embed_text(text)
        meaning = batch.meaning[batch.image_of_text]
        scale = self.model.embedding.scale()
        contrastive = info_nce(image_vector, text_vector, scale, meaning)

        similarity = scale.detach() * cosine(image_vector.detach(), text_vector.detach())
        wrong_image, wrong_text, valid = draw_negatives(similarity, meaning, None, self.hard_negatives)
        # Fusing is what costs: some of the texts, each with its image and in one wrong pair, by image or by text.
        row = torch.arange(min(self.matching_texts, len(meaning)), device=meaning.device)
        positive = self._match(image, text, batch.image_of_text[row], row)
        by_image = torch.rand(len(row), device=row.device) < 0.5
        image_row = torch.where(by_image, wrong_image[row], row)[valid[row]]
        text_row = torch.where(by_image, row, wrong_text[row])[valid[row]]
        negative = self._match(image, text, batch.image_of_text[image_row], text_row)
        return Step({"contrastive": contrastive, "matching": matching_loss(positive, negative)}, similarity)

    def _match(self, image: Stream, text: Stream, image_row: Tensor, text_row: Tensor) -> Tensor:
        return self.head(self.model.fuse(image.select(image_row), text.select(text_row), reads="pooled"))

    def collect(self, split: str, batch: RetrievalBatch) -> None:
        """Encode each side once; pairs are made of these when all are there."""
        image, text = self.model.encode_image(batch.image), self.model.encode_text(batch.text)
        encoded = (
            Encoded(batch.image_id, image, self.model.embed_image(image).float()),
            Encoded(batch.example_id, text, self.model.embed_text(text).float()),
        )
        self._collected.setdefault(split, []).append(encoded)

    def evaluate(self, split: str) -> Evaluation:
        """Recall both ways by every scorer, and whether it tells "a left of b" from "b left of a"."""
        captions: Captions = self.trainer.datamodule.table(split)  # type: ignore[attr-defined]
        images, texts = self._gather(self._collected.pop(split, []))
        relevant = relevance(captions)
        similarity = {"embedding": cosine(images.vector, texts.vector).cpu()}
        candidates = shortlist(similarity["embedding"], self.rerank)
        # Every pair is fused when it counts; while training, only those that the embeddings don't rule out.
        pairs = torch.ones_like(candidates) if self.trainer.testing else candidates
        start = time.perf_counter()
        matching = self._match_pairs(images.stream, texts.stream, pairs)
        seconds = time.perf_counter() - start
        similarity["rerank"] = torch.where(candidates, matching, similarity["embedding"] - FAR)
        if self.trainer.testing:
            similarity["matching"] = matching

        metrics, predictions = {"score": 0.0}, []
        for scorer, scores in similarity.items():
            found = recall(scores, relevant, self.ks)
            metrics |= {f"{scorer}/{name}": value for name, value in found.items()}
            if captions.swapped is not None:
                swapped = torch.from_numpy(captions.swapped)
                metrics[f"{scorer}/role_swap"] = role_swap_accuracy(scores, torch.from_numpy(captions.image), swapped)
            metrics["score"] = max(metrics["score"], (found["i2t_r@1"] + found["t2i_r@1"]) / 2)
            predictions += [top_ranked(scores, relevant, scorer)]
        return Evaluation(
            metrics=metrics,
            baselines={
                name: recall(torch.from_numpy(oracle), relevant, self.ks) for name, oracle in captions.oracles.items()
            },
            predictions={name: np.concatenate([part[name] for part in predictions]) for name in predictions[0]},
            cost={"matching_pairs_per_s": int(pairs.sum()) / seconds, "rerank_k": float(self.rerank)},
        )

    def _gather(self, parts: list[tuple[Encoded, Encoded]]) -> tuple[Encoded, Encoded]:
        """All images and all texts of the split in the order of their ids, on every rank."""
        shards = [parts]
        if dist.is_initialized():
            shards = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(shards, [(image.to("cpu"), text.to("cpu")) for image, text in parts])
        joined = [part for shard in shards for part in shard]
        images, texts = zip(*joined, strict=True)
        return join(images).to(self.device), join(texts).to(self.device)

    def _match_pairs(self, image: Stream, text: Stream, pairs: Tensor) -> Tensor:
        """Matching logits `float[U, B]` of the pairs `bool[U, B]` that are asked for, 0 elsewhere; ranks share them."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        rows = pairs.nonzero()
        scores = torch.zeros(len(rows))
        for chunk in torch.arange(len(rows)).split(self.pairs_per_chunk)[rank::world]:
            image_row, text_row = rows[chunk].to(self.device).unbind(dim=1)
            scores[chunk] = self._match(image, text, image_row, text_row).float().cpu()
        if world > 1:
            total = scores.to(self.device)
            dist.all_reduce(total)  # each pair was scored by one rank and is 0 on the others
            scores = total.cpu()
        matrix = torch.zeros(pairs.shape)
        matrix[pairs] = scores
        return matrix


FAR = 1e4  # puts what wasn't re-ranked below all that was, in its own order


@dataclass(frozen=True)
class Encoded(Tensors):
    """One side of a gallery."""

    id: Tensor  # int[n]
    stream: Stream
    vector: Tensor  # float[n, E]


def join(parts: Sequence[Encoded]) -> Encoded:
    """Batches of one side, padded to one length, in the order of their ids, each id once."""
    length = max(part.stream.mask.shape[1] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        missing = length - tensor.shape[1]
        return nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, missing))

    ids = torch.cat([part.id for part in parts])
    unique, where = np.unique(ids.cpu().numpy(), return_index=True)
    first = torch.from_numpy(where).to(ids.device)
    stream = Stream(
        states=torch.cat([padded(part.stream.states) for part in parts]),
        mask=torch.cat([padded(part.stream.mask) for part in parts]),
    )
    return Encoded(torch.from_numpy(unique), stream.select(first), torch.cat([part.vector for part in parts])[first])


def cosine(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of `image float[U, E]` with `text float[B, E]`: `float[U, B]`, in fp32 or better."""
    image, text = (nn.functional.normalize(v if v.dtype == torch.float64 else v.float(), dim=-1) for v in (image, text))
    return image @ text.T


def shortlist(similarity: Tensor, k: int) -> Tensor:
    """The pairs `bool[U, B]` that are among the k best of their image or of their text."""
    U, B = similarity.shape
    chosen = torch.zeros(U, B, dtype=torch.bool)
    chosen.scatter_(0, similarity.topk(min(k, U), dim=0).indices, True)
    chosen.scatter_(1, similarity.topk(min(k, B), dim=1).indices, True)
    return chosen


def relevance(captions: Captions) -> Tensor:
    """Which captions are true of which images, `bool[U, B]`."""
    if captions.relevant is not None:
        return torch.from_numpy(captions.relevant)
    return torch.arange(len(captions.images))[:, None] == torch.from_numpy(captions.image)[None, :]


def top_ranked(similarity: Tensor, relevant: Tensor, scorer: str) -> dict[str, np.ndarray]:
    """The best image of each text and the best text of each image, for the predictions file."""
    columns: dict[str, list[np.ndarray]] = {}
    for direction, scores, truth in (("t2i", similarity.T, relevant.T), ("i2t", similarity, relevant)):
        score, best = scores.max(dim=1)
        query = torch.arange(len(best))
        part = {
            "example": query.numpy(),
            "prediction": best.numpy().astype(str),
            "confidence": score.numpy(),
            "score": truth[query, best].float().numpy(),
            "target": truth.int().argmax(dim=1).numpy().astype(str),
            "type": np.full(len(best), f"{scorer}/{direction}"),
        }
        for name, column in part.items():
            columns.setdefault(name, []).append(column)
    return {name: np.concatenate(parts) for name, parts in columns.items()}
