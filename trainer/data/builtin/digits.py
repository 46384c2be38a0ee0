"""scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels in 17 shades of grey."""

from __future__ import annotations

import io
from typing import Any

from bellwether.trainer.data.builtin.registry import builtin


@builtin("digits", kind="images")
def digits() -> Any:
    """The images as PNG, with their labels."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = []
    for pixels in bunch.images:
        file = io.BytesIO()
        PILImage.fromarray((pixels * 255 / 16).round().astype("uint8")).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    names = [str(name) for name in bunch.target_names]
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": images, "label": [int(label) for label in bunch.target]}, features)
