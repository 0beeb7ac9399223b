"""A run on disk, as programs see it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.base.result import show_metric

if TYPE_CHECKING:
    from torch import nn

    from kdcli.base.result import Result
    from kdcli.config.run import RunConfig
    from kdcli.models.base import Model


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its folder.
    """

    path: Path

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end; one that a signal stopped goes on with ``kdcli distill --resume``."""
        return self._folder.read_result() is not None

    @property
    def result(self) -> Result:
        """All that it came to, as in ``result.json``.

        Raises:
            UserError: it is not finished.
        """
        found = self._folder.read_result()
        if found is None:
            raise UserError(
                f"The run {self.path} is not finished.", f"Go on with it: kdcli distill --resume {self.path}"
            )
        return found

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics of the best student by split: ``validation``, and ``test`` where it was tested."""
        result = self.result
        return {split: dict(found) for split in ("validation", "test") if (found := getattr(result, split))}

    @property
    def config(self) -> RunConfig:
        """All of its settings, with what the plan chose."""
        return self._folder.read_config()

    @property
    def plan(self) -> dict[str, Any]:
        """Every decision with its reason, as in ``plan.json``."""
        return self._folder.read_plan()

    @cached_property
    def model(self) -> Model:
        """The best student as kdcli's model, in eval mode on the CPU: its preprocessing, features and heads."""
        from kdcli.models import load_saved

        self._folder.check_student()
        return load_saved(self._folder.student)

    @property
    def student(self) -> nn.Module:
        """The best student as its library's own model, or as the program's own module; in eval mode on the CPU."""
        module = self.model.module
        network = getattr(module, "network", None)
        return network if type(module).__name__ == "HeldModule" and network is not None else module

    @property
    def _folder(self) -> Any:
        from kdcli.runs.folder import RunFolder

        return RunFolder(self.path)

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """As :func:`kdcli.evaluate`, of this run."""
        from kdcli.api import evaluate

        return evaluate(self, **options)

    def predict(self, inputs: str | Path | Sequence[str | Path] = (), **options: Any) -> dict[str, Any]:
        """As :func:`kdcli.predict`, by this run's student."""
        from kdcli.api import predict

        return predict(self, inputs, **options)

    def export(self, output: str | Path | None = None, **options: Any) -> Path:
        """As :func:`kdcli.export`, of this run."""
        from kdcli.api import export

        return export(self, output, **options)

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """Show metrics and the picture of samples in a notebook."""
        if not self.is_finished:
            return f"<p>{html.escape(str(self.path))}: not finished</p>"
        rows = "".join(
            f"<tr><td>{split}</td><td>{html.escape(name)}</td><td>{show_metric(name, value)}</td></tr>"
            for split, metrics in self.metrics.items()
            for name, value in metrics.items()
        )
        picture = self.path / "samples.png"
        shown = ""
        if picture.is_file():
            data = base64.b64encode(picture.read_bytes()).decode()
            shown = f'<img alt="Samples" style="max-width:100%" src="data:image/png;base64,{data}">'
        return f"<p>{html.escape(str(self.path))}</p><table>{rows}</table>{shown}"
