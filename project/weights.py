"""Networks by name, with their preprocessing and pretrained weights: torchvision's, timm's, or weights from a file."""

import difflib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights, list_models

from project import UserError, first_few, first_line
from project.files import one_at_a_time
from project.preprocessing import Fit, Preprocessing
from project.pruning import fit_widths
from project.state_dicts import match_names, resnet_of, unwrap
from project.tensor_files import read_tensors

NUM_OUTPUTS = 1000  # of the last layer of every network as it is built here


class Architecture(Protocol):
    """A network that a library knows by name."""

    arch: str  # the value of `--model.arch`
    kind: str  # what all of them are, for messages
    version: str  # of the code that determines its features

    def names(self) -> list[str]:
        """The names of all networks in the library."""

    def build(self, image_size: int) -> nn.Module:
        """The network with random weights. If its image size is fixed when it is built, it is `image_size` pixels."""

    def preprocessing(self, weights: str) -> Preprocessing:
        """See `preprocessing_for`."""

    def pretrained(self, weights: str) -> dict[str, Tensor]:
        """The state dict of the library's weights of this name, from a cache or the network. Raises `UserError`."""


class OfTorchvision:
    """A classification network of torchvision."""

    kind = "classification network of torchvision (those of timm: timm/NAME)"
    version = torchvision.__version__

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def names(self) -> list[str]:
        return list_models(module=torchvision.models)

    def build(self, image_size: int) -> nn.Module:
        is_vit = get_model_builder(self.arch).__module__.endswith(".vision_transformer")
        size = {"image_size": image_size} if is_vit else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GoogLeNet and Inception announce another initialization
            return torchvision.models.get_model(self.arch, weights=None, **size)

    def preprocessing(self, weights: str) -> Preprocessing:
        first = next(iter(get_model_weights(self.arch)))
        preset = (self.named(weights) or first).transforms()
        return {
            "resize_size": preset.resize_size[0],
            "crop_size": preset.crop_size[0],
            "interpolation": preset.interpolation.value,
            "mean": list(preset.mean),
            "std": list(preset.std),
            "white": None,
        }

    def named(self, weights: str) -> torchvision.models.WeightsEnum | None:
        """Look up `DEFAULT` or a torchvision weights name; None for `none` and for a file. Raises `UserError`."""
        if is_none_or_file(weights):
            return None
        known = get_model_weights(self.arch)
        names = known.__members__
        prefix, _, name = weights.rpartition(".")  # torchvision prints them as ResNet50_Weights.IMAGENET1K_V2
        if name not in names or prefix not in ("", known.__name__):
            raise UserError(
                f"--model.weights {weights}: no such file, and no torchvision weights of {self.arch}; "
                f"use a file, {', '.join(names)} (the newest), or none"
            )
        return names[name]

    def pretrained(self, weights: str) -> dict[str, Tensor]:
        named = self.named(weights)
        assert named is not None
        cache = Path(torch.hub.get_dir()) / "checkpoints" / named.url.rpartition("/")[2]
        if cache.exists():
            return read_cached(cache)
        try:
            return named.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
        except (URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            save = f", or save {named.url} as {cache}"
            raise cannot_get(f"{named.name} weights of {self.arch}", error, save) from error


class OfTimm:
    """A network of timm: `timm/NAME`, or `timm/NAME.TAG` for other weights than the default ones of that network."""

    kind = "network of timm"

    def __init__(self, arch: str) -> None:
        self.arch, self.name = arch, arch.removeprefix("timm/")
        try:
            import timm  # takes a second
        except ImportError as error:
            raise UserError(f"--model.arch {arch}: needs a package: pip install -e '.[timm]' ({error})") from error
        self.timm: Any = timm
        self.version = f"{timm.__version__} {torchvision.__version__}"

    def names(self) -> list[str]:
        return [f"timm/{name}" for tags in (False, True) for name in self.timm.list_models(include_tags=tags)]

    def build(self, image_size: int) -> nn.Module:
        return self.timm.create_model(self.name, num_classes=NUM_OUTPUTS)

    def preprocessing(self, weights: str) -> Preprocessing:
        if weights != "DEFAULT" and not is_none_or_file(weights):
            tagged = [f"timm/{name}" for name in self.timm.list_models(f"{self.name}.*", pretrained=True)]
            hint = f"; name other weights with --model.arch: {first_few(tagged)}" if tagged else ""
            raise UserError(f"--model.weights {weights}: no such file; use a file, DEFAULT or none{hint}")
        known = self.timm.data.resolve_data_config(pretrained_cfg=self.timm.get_pretrained_cfg(self.name).to_dict())
        size = known["input_size"][-1]
        fit: Fit = {"squash": "squash", "border": "pad"}.get(known["crop_mode"], "crop")  # type: ignore[assignment]
        return {
            "resize_size": int(size / known["crop_pct"]),  # timm, too, rounds down
            "crop_size": size,
            "interpolation": known["interpolation"],
            "mean": list(known["mean"]),
            "std": list(known["std"]),
            "fit": fit,
            "white": None,
        }

    def pretrained(self, weights: str) -> dict[str, Tensor]:
        known = self.timm.get_pretrained_cfg(self.name)
        if not (known.hf_hub_id or known.url):
            raise UserError(f"--model.weights {weights}: timm has no weights of {self.arch}; use a file, or none")
        cache = Path(torch.hub.get_dir()) / "checkpoints" / str(known.url).rpartition("/")[2]
        try:
            if known.hf_hub_id:
                state = read_cached(Path(hub_file(known.hf_hub_id)))
            elif cache.is_file():
                state = read_cached(cache)
            else:
                state = torch.hub.load_state_dict_from_url(known.url, map_location="cpu", weights_only=True)
        except UserError:
            raise
        except Exception as error:  # the packages that download have types of their own
            where = f"model.safetensors of {known.hf_hub_id} on the Hugging Face Hub" if known.hf_hub_id else known.url
            raise cannot_get(f"{weights} weights of {self.arch}", error, file=f", such as {where}") from error
        # timm renames the tensors, but does not read the file: some of its versions would run code that it contains.
        net = self.timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
        return net.state_dict()


def find_architecture(arch: str) -> Architecture:
    """Look up the value of `--model.arch`, without building the network.

    Raises:
        UserError: There is no such network, or its library is not installed.
    """
    found: Architecture = OfTimm(arch) if arch.startswith("timm/") else OfTorchvision(arch)
    names = found.names()
    if arch not in names:
        close = difflib.get_close_matches(arch, names)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"--model.arch {arch}: no {found.kind}{hint}")
    return found


def preprocessing_for(arch: str, weights: str) -> Preprocessing:
    """The evaluation preprocessing of a network's weights; for a file or `none`, of the first that were published.

    Raises:
        UserError: There is no such network, or it has no such weights.
    """
    return find_architecture(arch).preprocessing(weights)


def is_none_or_file(weights: str) -> bool:
    """Whether the weights are not those of a library."""
    return weights == "none" or Path(weights).is_file()


def cannot_get(what: str, error: Exception, or_save: str = "", file: str = "") -> UserError:
    """The error for weights that are not in the cache and cannot be downloaded."""
    return UserError(
        f"cannot get the {what} ({first_line(error)}). Three ways out: connect to the network{or_save}; "
        f"name a .pth or .safetensors file with --model.weights{file}; "
        "or train from scratch with --model.weights none"
    )


def read_cached(path: Path) -> dict[str, Tensor]:
    """Read weights that were downloaded earlier. Raises `UserError` if they are damaged, with the way out."""
    try:
        return unwrap(read_tensors(str(path), "downloaded weights"), f"downloaded weights {path}")
    except UserError as error:
        raise UserError(f"{error}; delete this file, and it is downloaded again") from error


def hub_file(repository: str) -> str:
    """The path of the weights in a repository of the Hugging Face Hub, in its cache or downloaded to it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    safe, other = "model.safetensors", "pytorch_model.bin"
    for name in (safe, other):
        if isinstance(cached := try_to_load_from_cache(repository, name), str):
            return cached
    try:
        get_hf_file_metadata(hf_hub_url(repository, safe))  # fails at once, where a download tries for half a minute
        return hf_hub_download(repository, safe)
    except EntryNotFoundError:
        return hf_hub_download(repository, other)


def read_weights(architecture: Architecture, weights: str) -> dict[str, Tensor]:
    """A network's state dict, from a library or a file. Pickled code is refused, never executed.

    Raises:
        UserError: It cannot be obtained, or is not a state dict.
    """
    if not is_none_or_file(weights):
        lock = Path(torch.hub.get_dir()) / "checkpoints/busy.lock"
        with one_at_a_time(lock):  # of processes that start together, the first one downloads them
            return architecture.pretrained(weights)
    return unwrap(read_tensors(weights, "--model.weights"), f"--model.weights {weights}")


def load_weights(net: nn.Module, head: str, architecture: Architecture, weights: str) -> None:
    """Load all weights but those of the head.

    Args:
        net: The network, as built by `architecture`.
        head: The name of its last layer.
        architecture: Which network it is.
        weights: See `make_net`; not `none`.

    Raises:
        UserError: They cannot be obtained, or belong to another network.
    """
    state = match_names(read_weights(architecture, weights), net.state_dict(), f"--model.weights {weights}")
    for name in list(state):
        if name.startswith(f"{head}."):
            del state[name]
        elif "denselayer" in name:  # old weights of DenseNets have a dot in norm1 and conv1
            state[re.sub(r"(norm|conv)\.(\d)\.", r"\1\2.", name)] = state.pop(name)
    reason = load_body(net, head, state)
    other = resnet_of(state) if reason else None
    if reason and other is None:
        try:
            reason = load_body(net, head, state) if fit_widths(net, state) else reason  # of a pruned network
        except ValueError as error:
            reason = str(error)
    if reason:
        hint = f"they are those of {other}: use --model.arch {other}" if other else reason
        raise UserError(f"--model.weights {weights} does not fit --model.arch {architecture.arch}; {hint}")


def load_body(net: nn.Module, head: str, state: dict[str, Tensor]) -> str:
    """Load a state dict without the head's part, and return why it does not fit: an empty string if it does."""
    for name, tensor in net.state_dict().items():
        if name in state and state[name].shape != tensor.shape:
            return f"the shape of {name!r} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:  # of a network that reads weights of older versions
        return str(error).split("\t")[-1]
    # The counters matter to no result, and weights of before 2018 lack them
    missing = [name for name in missing if not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked")]
    return f"no tensor {missing[0]!r}" if missing else f"no place for {unexpected[0]!r}" if unexpected else ""
