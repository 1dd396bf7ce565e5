"""A LitServe server for an exported model, written as its documentation does; `serving.py` starts it.

    python scripts/bench/litserve_peer.py MODEL WORKERS BATCH PORT SETTINGS

With SETTINGS `plain`, ONNX Runtime has its default options and Pillow decodes; with `ours`, this project's session and
decoder take their place, so that only the servers differ.
"""

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import Request
from litserve import LitAPI, LitServer
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from project.exported import Exported
from project.images import load_for_evaluation

MODEL, WORKERS, BATCH, PORT, SETTINGS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]


class Plain:
    """ONNX Runtime with its default options, and Pillow."""

    def __init__(self) -> None:
        self.session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.class_names = json.loads(metadata["class_names"])
        self.preprocessing = json.loads(metadata["preprocessing"])

    def read(self, content: bytes) -> np.ndarray:
        """An image, uint8 `(S, S, 3)`: its shorter side resized, then its centre."""
        image = Image.open(BytesIO(content)).convert("RGB")
        resize, crop = self.preprocessing["resize_size"], self.preprocessing["crop_size"]
        scale = resize / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = ((side - crop) // 2 for side in image.size)
        return np.asarray(image.crop((left, top, left + crop, top + crop)))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": images})[0]


class Ours(Exported):
    """This project's session, with the cores divided among the workers, and its decoder."""

    def __init__(self) -> None:
        super().__init__(MODEL, threads=max(1, 2 // WORKERS))

    def read(self, content: bytes) -> np.ndarray:
        """An image, uint8 `(S, S, 3)`."""
        return load_for_evaluation(content, self.preprocessing)


class Api(LitAPI):
    """The model, with batches if LitServe makes them."""

    def setup(self, device: str) -> None:
        """Load the model in a worker."""
        self.model: Any = Plain() if SETTINGS == "plain" else Ours()

    def decode_request(self, request: Request) -> np.ndarray:
        """The image of a request."""
        return self.model.read(request["file"].file.read())  # type: ignore[index]

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Images as a batch."""
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities of one image or of a batch."""
        return self.model(images if images.ndim == 4 else images[None])

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """A batch as rows."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """The five most probable classes."""
        row = output.reshape(-1)
        return {"probabilities": {self.model.class_names[i]: float(row[i]) for i in np.argsort(-row)[:5]}}


if __name__ == "__main__":
    options = {"max_batch_size": BATCH, "batch_timeout": 0.003} if BATCH > 1 else {}
    server = LitServer(Api(**options), accelerator="cpu", workers_per_device=WORKERS)
    server.run(port=PORT, host="127.0.0.1", log_level="error", generate_client_file=False)
