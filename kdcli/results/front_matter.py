"""What the Hugging Face hub reads of a model card: its front matter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kdcli.base.result import UNREADABLE
from kdcli.base.text import printable
from kdcli.config.run import RunConfig
from kdcli.models.library import Library
from kdcli.models.sources import source_on_hub

_NO_METRICS = ("loss", UNREADABLE)


def with_front_matter(
    body: str, *, name: str, config: RunConfig, library: Library | None, metrics: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return a model card in Markdown: what the hub reads, then ``body``.

    Args:
        body: Markdown.
        name: of the model, on the hub's leaderboards.
        config: of the run. Teacher and student whose weights are from the hub are its base models; the licence is that
            of the student's weights.
        library: that loads the files; None where they are graphs.
        metrics: of the kept student by split.
    """
    student = source_on_hub(config.student.name) if config.student.pretrained else None
    teacher = source_on_hub(config.teacher.name) if config.teacher.weights is None else None
    sources = [source.repo for source in (student, teacher) if source is not None]
    prefix, _, rest = config.data.name.partition(":")
    of_hub = rest.partition("@")[0] if prefix == "hf" else None
    dataset = of_hub or config.data.name.rstrip("/").rpartition("/")[2]
    data = ModelCardData(
        library_name=None if library is None else library.hub_name or library.name,
        pipeline_tag=config.task_facts.pipeline_tag,
        license=student.licence if student is not None else None,
        base_model=list(dict.fromkeys(sources)) or None,
        datasets=None if of_hub is None else [of_hub],
        tags=["knowledge-distillation", "kdcli"],
        model_name=printable(name),
        eval_results=_results(config, dataset, metrics) or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _results(config: RunConfig, data: str, metrics: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """Return every metric that is a finite number; a folder of data is called by its last part alone."""
    task = config.task_facts
    return [
        EvalResult(
            task_type=task.pipeline_tag,
            task_name=task.words,
            dataset_type=printable(data),
            dataset_name=printable(data),
            dataset_split=split,
            metric_type=name,
            metric_name=name,
            metric_value=value,
        )
        for split, found in metrics.items()
        for name, value in found.items()
        if name not in _NO_METRICS and isinstance(value, int | float) and math.isfinite(value)
    ]
