"""``kdcli export`` in any of its formats, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr
from kdcli.results.export import Exported, export_safetensors
from kdcli.results.graphs import FORMATS, export_graph
from kdcli.results.quantize import CALIBRATION, Quantizer
from kdcli.runs.folder import RunFolder

NATIVE = "safetensors"
NAMES: Sequence[str] = (NATIVE, *FORMATS)


def export_run(
    run: RunFolder, output: Path, *, form: str = NATIVE, quantize: str | None = None, calibration: int = CALIBRATION
) -> tuple[Exported, Quantizer | None]:
    """Write the best student in a format, and check it.

    Args:
        run: a finished run.
        output: the folder.
        form: one of :data:`NAMES`.
        quantize: ``int8`` for a quantised graph beside ``onnx``; None for none.
        calibration: training samples that its ranges are set by.

    Returns:
        What came of it, and of a quantised graph what it was measured to be.

    Raises:
        UserError: there is no such format, a package is missing, the model or the run's data don't do for it, or what
            is loaded back gives something else.
    """
    if form not in NAMES:
        raise UserError(
            f"There is no format {short_repr(form)}. {did_you_mean(form, NAMES)}".rstrip(),
            f"Use {', '.join(NAMES[:-1])} or {NAMES[-1]}.",
        )
    if quantize not in (None, "int8"):
        raise UserError(f"There is no quantisation {short_repr(quantize)}.", "Use --quantize int8.")
    if quantize is not None and form != "onnx":
        raise UserError(f"--quantize is for --format onnx, and the format is {form}.", "Add --format onnx.")
    if form == NATIVE:
        return export_safetensors(run, output), None
    FORMATS[form].check_packages()
    quantizer = None if quantize is None else Quantizer(run, samples=calibration)
    return export_graph(run, output, FORMATS[form], complete=quantizer), quantizer
