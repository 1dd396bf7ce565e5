"""An exported model as a model repository for Triton and KServe, which read the ONNX file as it is."""

import json
import re
import shutil
from pathlib import Path

from project import UserError, printable
from project.exported import INPUT, OUTPUT, Exported

CONFIG = """\
name: {name}
platform: "onnxruntime_onnx"
max_batch_size: {batch}
input [ {{ name: "{input}", data_type: TYPE_UINT8, dims: [ {size}, {size}, 3 ] }} ]
output [ {{ name: "{output}", data_type: TYPE_FP32, dims: [ {classes} ], label_filename: "labels.txt" }} ]
dynamic_batching {{ }}
"""
MAX_BATCH = 8


def write_triton(model_path: str | Path, folder: str | Path) -> Path:
    """Write `NAME/config.pbtxt`, `NAME/labels.txt` and `NAME/1/model.onnx` into a model repository.

    Clients send uint8 `(B, S, S, 3)`, decoded and cropped as the file's `preprocessing` says. The model is loaded
    first, so that its inputs and outputs are as the configuration states.

    Args:
        model_path: The ONNX file; NAME is its name, with `_` for what Triton does not allow.
        folder: The model repository: what `tritonserver --model-repository` is given.

    Returns:
        `folder/NAME`.

    Raises:
        UserError: The file is no exported model, or the folder cannot be written.
    """
    model = Exported(model_path)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", Path(model_path).stem)
    config = CONFIG.format(
        name=json.dumps(name),
        batch=MAX_BATCH,
        input=INPUT,
        output=OUTPUT,
        size=model.preprocessing["crop_size"],
        classes=len(model.class_names),
    )
    place = Path(folder) / name
    try:
        (place / "1").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model_path, place / "1/model.onnx")
        labels = "".join(f"{printable(label)}\n" for label in model.class_names)
        (place / "labels.txt").write_text(labels, encoding="utf-8")
        (place / "config.pbtxt").write_text(config)
    except OSError as error:
        raise UserError(f"cannot write {place} ({error.strerror})") from error
    return place
