"""What the task ``image-embedding`` knows images by."""

from __future__ import annotations

import torch

from kdcli.data import Batch
from kdcli.tasks.embedding.images import ImageEmbedding, keys_of


def draw(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_other_images_have_other_keys():
    image = draw(3, 6, 4)
    one_pixel = image.clone()
    one_pixel[2, 5, 3] ^= 1
    swapped = image.roll(1, dims=2)
    black = torch.zeros_like(image)
    keys = keys_of(torch.stack([image, one_pixel, swapped, black, image]))
    assert keys[0] == keys[4] == keys_of(image[None])[0]
    assert len({*keys, *keys_of(image.view(1, 3, 4, 6)), *keys_of(black.view(1, 3, 4, 6))}) == 6


def test_images_stay_where_they_are_and_are_embedded_once(monkeypatch):
    asked, moved, cpu = [], [], torch.Tensor.cpu

    def reference(batch):
        asked.append(len(batch))
        return batch.images.flatten(1)[:, :2].float()

    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tensor.shape) or cpu(tensor))
    task, images = ImageEmbedding(reference), draw(5, 3, 6, 4)
    for rows in ([0, 1, 2, 3, 4], [4, 2]):
        batch = Batch(images=images[rows], targets=torch.zeros(len(rows)), samples=torch.tensor(rows))
        assert torch.equal(task.embed(batch), images[rows].flatten(1)[:, :2].float())
    assert asked == [5]
    assert moved == [(5, 2)]
