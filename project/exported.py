"""Exported models: from images as Pillow gives them to probabilities, by ONNX Runtime or OpenVINO, without torch.

An exported model is one ONNX file. Its input `images` is uint8 `(B, S, S, 3)`, its output `probabilities` float32
`(B, C)`; normalization and softmax are in the graph. What else is needed is in the file's metadata: `class_names` and
`preprocessing`, both JSON, and how the file was made.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from project import UserError, first_line, num_cores, printable
from project.answers import Promises, check_finite, is_promises
from project.onnx_files import OnnxFile, read_onnx
from project.preprocessing import Preprocessing, check_preprocessing

Runtime = Literal["onnxruntime", "openvino"]
INPUT, OUTPUT = "images", "probabilities"
MAX_CLASSES = 100_000
TRIAL_BYTES = 800_000_000  # of memory that one image may take: a file of a kilobyte can ask for any number
FAST_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")  # CPU flags; without them sums of products may saturate


class Session(Protocol):
    """A model in a runtime."""

    runtime: str  # its name and version

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float32 `(B, C)`, of images, uint8 `(B, S, S, 3)`."""


class Exported:
    """An exported model, ready to classify.

    Attributes:
        path: The file.
        class_names: In the order of the outputs.
        preprocessing: How images are prepared.
        threshold: Below this probability of the first class, the answer is `unsure`; None if none was chosen.
        promises: See `project.insight.calibration.promises_of`; none if it was exported without.
        precision: `fp32` or `int8`: that of the arithmetic.
        metadata: All of the file's metadata, as text.
        sha256: Of what was loaded: the file may be replaced later.
        runtime: What runs it, with its version.
    """

    def __init__(self, path: str | Path, runtime: Runtime = "onnxruntime", threads: int | None = None) -> None:
        """Check the file, and load it.

        Args:
            path: The file.
            runtime: What is to run it.
            threads: Number of threads; by default, the cores that this process may use.

        Raises:
            UserError: The file is unsafe, damaged or no exported model of this project, or the runtime is missing.
        """
        self.path = str(path)
        file = read_onnx(path)
        self.metadata = file.metadata
        self.sha256 = hashlib.sha256(file.content).hexdigest()
        if (task := self.metadata.get("task", "classification")) != "classification":
            raise UserError(f"model {path}: made for another task, {printable(task, 40)}, not for classification")
        self.class_names: list[str] = self._from_metadata("class_names", list)
        self.preprocessing: Preprocessing = self._from_metadata("preprocessing", dict)  # type: ignore[assignment]
        self.threshold: float | None = self._from_metadata("threshold", float | int | None)
        self.promises: Promises = self._from_metadata("promises", list) if "promises" in self.metadata else []
        self.precision = file.metadata.get("precision", "")
        self._check_metadata()
        size = self.preprocessing["crop_size"]
        self.session = make_session(self.path, file, runtime, threads or num_cores(), size, len(self.class_names))
        self.runtime = self.session.runtime

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float32 `(B, C)`, of images, uint8 `(B, S, S, 3)`, prepared as `preprocessing` says.

        Raises:
            MemoryError: There is not enough for so many images.
            UserError: The runtime cannot run the model.
        """
        try:
            return self.session(images)
        except Exception as error:  # of many types, all the runtime's own
            if "alloc" in str(error).lower():
                raise MemoryError from error
            raise UserError(f"model {self.path}: {self.runtime} cannot run it ({reason(error)})") from error

    def _from_metadata(self, name: str, kind: Any) -> Any:
        if name not in self.metadata:
            raise UserError(f"model {self.path}: no exported model of this project (its metadata lack {name!r})")
        try:
            value = json.loads(self.metadata[name])
        except (ValueError, RecursionError) as error:
            raise self._lies(name) from error
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._lies(name)
        return value

    def _check_metadata(self) -> None:
        names = self.class_names
        if not 0 < len(names) <= MAX_CLASSES:
            raise UserError(f"model {self.path}: {len(names):,} classes; from 1 to {MAX_CLASSES:,} are possible")
        if not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
            raise self._lies("class_names")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise self._lies("threshold")
        if not is_promises(self.promises):
            raise self._lies("promises")
        if self.precision not in ("fp32", "int8"):
            raise self._lies("precision")
        try:
            check_preprocessing(self.preprocessing)
        except UserError as error:
            raise UserError(f"model {self.path}: {error}") from error

    def _lies(self, name: str) -> UserError:
        return UserError(f"model {self.path}: {name!r} in its metadata is not as scripts/export.py writes it")


class OnnxRuntimeSession:
    """A model in ONNX Runtime, on the CPU.

    Args:
        file: The file.
        threads: Number of threads.
        trial: Run it as it is written, without optimizing, within `TRIAL_BYTES`.
    """

    def __init__(self, file: OnnxFile, threads: int, trial: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever the bytes may look like
        options.log_severity_level = 4  # all errors are raised, too
        # Waiting threads that spin take the cores from those who decode images: half the images per second
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if has_fast_int8() is False:
            options.add_session_config_entry("session.x64quantprecision", "1")
        self.run_options = onnxruntime.RunOptions()
        if trial:
            limit_memory()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
            options.add_session_config_entry("session.disable_prepacking", "1")
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.session = onnxruntime.InferenceSession(
            file.content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.inputs = [(x.name, x.type, x.shape) for x in self.session.get_inputs()]
        self.outputs = [(x.name, x.type, x.shape) for x in self.session.get_outputs()]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.session.run([OUTPUT], {INPUT: images}, self.run_options)[0]


@functools.cache
def limit_memory() -> None:
    """Limit what sessions with `use_env_allocators` may take, of which the process has one set."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    limit = onnxruntime.OrtArenaCfg({"max_mem": TRIAL_BYTES, "arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(memory, limit)


class OpenVinoSession:
    """A model in OpenVINO, on the CPU. Files in fp32 are run in fp32: unasked, OpenVINO takes bf16 where it is faster.

    Args:
        file: The file.
        threads: Number of threads.
    """

    def __init__(self, file: OnnxFile, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise UserError(f"--runtime openvino: needs a package: pip install -e '.[openvino]' ({error})") from error

        core = openvino.Core()
        config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self.model = core.compile_model(core.read_model(file.content), "CPU", config)
        self.runtime = f"openvino {openvino.__version__.split('-')[0]} in f32"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.model({INPUT: images})[OUTPUT]


def make_session(path: str, file: OnnxFile, runtime: Runtime, threads: int, size: int, num_classes: int) -> Session:
    """Try a file that has been checked on one image, and load it.

    ONNX Runtime does the first, for it tells what the inputs and outputs are, and can be kept within limits.

    Raises:
        UserError: The runtime is missing or cannot load the file; or inputs and outputs are not as the metadata say.
    """
    if runtime not in get_args(Runtime):
        raise UserError(f"--runtime {runtime}: must be one of {', '.join(get_args(Runtime))}")
    try:
        trial = OnnxRuntimeSession(file, threads, trial=True)
        check_form(path, trial, size, num_classes)
        answer = trial(np.zeros((1, size, size, 3), np.uint8))
    except ImportError as error:
        raise UserError(f"model {path}: needs a package: pip install onnxruntime ({error})") from error
    except UserError:
        raise
    except Exception as error:  # of many types, all ONNX Runtime's own
        if "Available memory of" in str(error):
            raise UserError(f"model {path}: refused: one image takes above {TRIAL_BYTES / 1e9:.1f} GB") from error
        raise UserError(f"model {path}: ONNX Runtime cannot load it ({reason(error)})") from error
    check_finite(answer)
    if answer.shape != (1, num_classes) or abs(answer.sum() - 1) > 0.01 or answer.min() < 0:
        raise UserError(f"model {path}: refused: what it answers are no probabilities of {num_classes} classes")
    del trial
    try:
        return OpenVinoSession(file, threads) if runtime == "openvino" else OnnxRuntimeSession(file, threads)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {path}: {runtime} cannot load it ({reason(error)})") from error


def check_form(path: str, session: OnnxRuntimeSession, size: int, num_classes: int) -> None:
    """Check that there is one input, images, and one output, probabilities. Raises `UserError`."""
    (name, kind, shape), *more = session.inputs or [("", "", [])]
    is_other = (name, kind, shape[1:]) != (INPUT, "tensor(uint8)", [size, size, 3])
    if more or is_other or isinstance(shape[0], int):  # of a fixed number of images
        wanted = f"{INPUT} (uint8, batch x {size} x {size} x 3)"
        raise UserError(f"model {path}: its input is not {wanted}, as its metadata say")
    (name, kind, shape), *more = session.outputs or [("", "", [])]
    if more or (name, kind, shape[1:]) != (OUTPUT, "tensor(float)", [num_classes]):
        raise UserError(f"model {path}: its output is not {OUTPUT} (float, batch x {num_classes}), as its metadata say")


def reason(error: Exception) -> str:
    """Why a runtime failed: the first line of its message, which may quote the file."""
    return printable(first_line(error), 200)


def has_fast_int8() -> bool | None:
    """Whether the CPU adds products of 8-bit numbers without saturating; None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return any(flag in text for flag in FAST_INT8)
