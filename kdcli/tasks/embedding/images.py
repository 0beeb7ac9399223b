"""The teacher's embedding space of images, without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

from kdcli.data import AnyBatch, Batch
from kdcli.tasks.embedding.texts import SentenceEmbedding


class ImageEmbedding(SentenceEmbedding):
    """The task ``image-embedding``: its metrics are those of texts."""

    name = "image-embedding"
    noun = "image"

    def _keys(self, batch: AnyBatch) -> Sequence[Hashable]:
        assert isinstance(batch, Batch)
        return [hashlib.blake2b(image.numpy(), digest_size=16).digest() for image in batch.images.cpu()]
