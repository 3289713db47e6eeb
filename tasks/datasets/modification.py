"""A picture made another one of the same thing: mirrored or not, a random crop of it enlarged to its size again."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from latentprint.tasks.datasets.decoding import Picture


def modified(picture: Picture, generator: np.random.Generator, *, mirror: float, crop: float) -> Picture:
    """The picture, of the same size and mode, with what was done to it in ``conversion``.

    Args:
        mirror: probability that left and right are exchanged.
        crop: least share of either side that is kept; the share and the place are drawn evenly.
    """
    image, done = Image.fromarray(picture.pixels), [picture.conversion]
    share = float(generator.uniform(crop, 1.0))
    width, height = image.width * share, image.height * share
    left, top = generator.uniform(0.0, image.width - width), generator.uniform(0.0, image.height - height)
    box = (left, top, left + width, top + height)
    if share < 1.0:
        image = image.resize(image.size, Image.Resampling.BICUBIC, box)
        done.append("crop_" + "_".join(f"{edge:.2f}" for edge in box))
    if generator.random() < mirror:
        image = ImageOps.mirror(image)
        done.append("mirrored")
    return Picture(np.array(image, dtype=np.uint8), ",".join(filter(None, done)))
