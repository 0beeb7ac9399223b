"""Any batch that a loader yields."""

from __future__ import annotations

from kdcli.data.images.batch import Batch
from kdcli.data.texts.batch import AnyTextBatch

AnyBatch = Batch | AnyTextBatch
"""What a loader yields and :meth:`kdcli.models.base.Model.prepare` takes."""
