"""Images made to fit a model's input, in one explicit and recorded way: what was done in training must be done here.

The order is that of the usual training scripts (torchvision's ``Resize`` and ``CenterCrop``): colour, then size. The
sides are scaled by one factor until the image covers the size, and what overhangs is cut off evenly; or each side is
stretched. Pillow resamples, with antialiasing when shrinking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from latentprint.tasks.datasets.decoding import MAX_PIXELS, Picture, Rejected

Mode = Literal["keep", "L", "RGB"]
Resample = Literal["bilinear", "bicubic", "lanczos", "box", "nearest"]
Fit = Literal["crop", "stretch"]


@dataclass(frozen=True)
class Fitting:
    """How images become what the model takes; by default they are left as they are."""

    mode: Mode = "keep"
    """``L``: luma by ITU-R 601-2; ``RGB``: the grey level three times."""
    size: tuple[int, int] | None = None
    """(width, height) [pixels]; None: left alone."""
    resample: Resample = "bilinear"
    fit: Fit = "crop"

    def __call__(self, picture: Picture) -> Picture:
        """The picture in the wanted mode and size; what was done is added to its ``conversion``.

        >>> Fitting("RGB", (2, 2))(Picture(np.zeros((2, 3), np.uint8))).conversion
        'l_to_rgb,crop_2x2'

        Raises:
            Rejected: so long and narrow that it would take more than ``MAX_PIXELS`` to cover the size.
        """
        if self.mode in ("keep", picture.mode) and self.size in (None, picture.size):
            return picture
        image, done = Image.fromarray(picture.pixels), [picture.conversion]
        if self.mode not in ("keep", image.mode):
            done.append(f"{image.mode}_to_{self.mode}".lower())
            image = image.convert(self.mode)
        if self.size not in (None, image.size):
            assert self.size is not None
            image = self._resized(image, self.size, done)
        return Picture(np.array(image, dtype=np.uint8), ",".join(filter(None, done)))

    def _resized(self, image: Image.Image, size: tuple[int, int], done: list[str]) -> Image.Image:
        (width, height), covering = size, size
        if self.fit == "crop":
            factor = max(width / image.width, height / image.height)
            covering = max(width, round(image.width * factor)), max(height, round(image.height * factor))
        if covering[0] * covering[1] > MAX_PIXELS:
            raise Rejected(f"{image.width} x {image.height} pixels: too long and narrow to cover {width} x {height}")
        if covering != image.size:
            done.append("resize_{}_{}x{}".format(self.resample, *covering))
            image = image.resize(covering, Image.Resampling[self.resample.upper()])
        if image.size == size:
            return image
        done.append(f"crop_{width}x{height}")
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
