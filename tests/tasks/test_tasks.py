"""Every model with every task: gradients, overfitting, encoding once; found by walking conf/."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from multimodal.build import build_data, build_task, freeze_unused
from multimodal.data.datamodule import DataModule
from multimodal.models.contract import VERBS
from multimodal.tasks.base import Task, unused_parameters
from multimodal.types import Batch
from tests.configs import MODELS, TASKS, small

every_pair = pytest.mark.parametrize(("model", "task"), [(m, t) for m in MODELS for t in TASKS])


@cache
def data_for(task: str) -> DataModule:
    return build_data(small(f"task={task}"))


def make(model: str, task: str, *overrides: str) -> tuple[Task, DataModule]:
    torch.manual_seed(0)
    data = data_for(task)
    return build_task(small(f"model={model}", f"task={task}", *overrides), data.vocabularies), data


@every_pair
@pytest.mark.parametrize("block", ["common", "paper"])
def test_gradients_reach_every_parameter_that_is_left(model: str, task: str, block: str) -> None:
    made, data = make(model, task, f"size.block={block}")
    frozen = freeze_unused(made, data)
    sum(made.step(data.example_batch(8)).losses.values()).backward()  # type: ignore[union-attr]
    for name, parameter in made.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == (name not in frozen), name
    # What is frozen is what this task has no use for, never most of the model.
    share = sum(p.numel() for n, p in made.named_parameters() if n in frozen) / sum(
        p.numel() for p in made.parameters()
    )
    assert share < 0.5


def test_looking_for_unused_parameters_leaves_no_trace() -> None:
    made, data = make("lxmert", "retrieval")
    before, random = {k: v.clone() for k, v in made.state_dict().items()}, torch.get_rng_state()
    assert unused_parameters(made, data.example_batch(4)) == unused_parameters(made, data.example_batch(4))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())


@every_pair
def test_one_batch_can_be_learned_by_heart(model: str, task: str) -> None:
    made, data = make(model, task)
    batch = data.examples("train")[np.arange(0, 16, 2)]  # of captions no twins: they take much longer to tell apart
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    losses = [math.inf]
    while losses[-1] > 0.1 * max(losses[1:], default=0.0) and len(losses) < 250:
        loss = torch.stack(list(made.step(batch).losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) < 250, losses[1::25]


@every_pair
def test_an_image_encoded_once_serves_all_its_texts(model: str, task: str) -> None:
    made, data = make(model, task)
    made.eval()
    batch = data.example_batch(12)
    each = replace(batch, image=batch.image.map(lambda t: t[batch.image_of_text]), image_of_text=torch.arange(12))
    with torch.no_grad():
        once, again = (_pooled(made, b) for b in (batch, each))
    torch.testing.assert_close(once, again, atol=1e-5, rtol=1e-5)


def _pooled(task: Task, batch: Batch) -> torch.Tensor:
    model = task.model
    image, text = model.encode_image(batch.image), model.encode_text(batch.text)
    return model.fuse(image.select(batch.image_of_text), text).pooled


@every_pair
def test_a_task_calls_only_the_verbs(model: str, task: str) -> None:
    """What shards or compiles a model wraps the verbs and nothing else."""
    made, data = make(model, task)
    called: set[str] = set()

    def spy(name: str) -> Callable[..., Any]:
        verb = getattr(real, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return verb(*args, **kwargs)

        return call

    class OnlyVerbs:
        def __getattr__(self, name: str) -> Any:
            assert name in (*VERBS, "embedding", "width"), f"{task} reads model.{name}"
            return spy(name) if name in VERBS else getattr(real, name)

    real = made.model
    del made._modules["model"]
    object.__setattr__(made, "model", OnlyVerbs())
    made.step(data.example_batch(4))


def test_a_task_without_answers_says_so() -> None:
    plain = small("task=vqa")
    vocabularies = replace(data_for("retrieval").vocabularies, answers=None)
    with pytest.raises(ValueError, match="task=vqa"):
        build_task(plain, vocabularies)
