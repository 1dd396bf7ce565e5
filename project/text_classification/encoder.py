"""Encoders of the BERT family, with their tokenizers: from a folder, the Hugging Face Hub or its cache.

Only JSON and safetensors are read, so that nothing downloaded can run code: no pickle, no module from a repository, no
class that a file names. `transformers` is imported where an encoder is built, as it takes seconds.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from project import UserError, first_few, first_line
from project.state_dicts import match_names, unwrap
from project.tensor_files import read_tensors
from project.text_classification.tokenizer import Tokenizer, package_missing

log = logging.getLogger(__name__)

# Those whose hidden states come from `input_ids` and `attention_mask` alone, and are named as `layer_of` reads them
MODEL_TYPES = (
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")  # whose first ones are never used
NOT_KEPT = (
    *("architectures", "auto_map", "dtype", "id2label", "label2id", "transformers_version"),
    *("return_dict", "output_hidden_states", "output_attentions"),
)
WITHOUT_DEFAULT = {  # what transformers reads, but a new configuration of this type does not list
    "deberta-v2": ("position_buckets", "norm_rel_ebd", "share_att_key", "conv_kernel_size", "conv_act", "conv_groups"),
    "modernbert": ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"),
}
MAX_LAYERS = 96
MAX_WIDTH = 1_000_000  # also of the vocabulary
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of a repository
WAYS_OUT = "connect to the network; set HF_HOME to a hub cache that has it; or name a folder with --model.encoder"


def read_encoder(encoder: str) -> tuple[dict[str, Any], Tokenizer]:
    """The configuration of an encoder, as plain types, and its tokenizer.

    Args:
        encoder: A folder, or the name of a repository of the Hugging Face Hub.

    Raises:
        UserError: They cannot be obtained or used; the message says why.
    """
    what = f"--model.encoder {encoder}"
    given = as_json(read(encoder, "config.json"), f"{what}: config.json")
    content = read(encoder, "tokenizer.json")
    config = checked_config(given, f"{what}: config.json")
    try:
        tokenizer = tokenizer_of(content, config)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    return config, tokenizer


def tokenizer_of(content: str, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of an encoder, from the text of its `tokenizer.json`. Raises `UserError` if they do not fit."""
    pad_id, longest = config["pad_token_id"] or 0, config["max_position_embeddings"]
    if config["model_type"] in POSITIONS_AFTER_PADDING:
        longest -= pad_id + 1
    tokenizer = Tokenizer(content, pad_id, longest)
    if tokenizer.num_tokens > config["vocab_size"]:
        raise UserError(
            f"tokenizer.json has {tokenizer.num_tokens:,} tokens, config.json only {config['vocab_size']:,}: they are "
            "not of the same encoder"
        )
    return tokenizer


def read(encoder: str, name: str) -> str:
    """The text of a file of an encoder. Raises `UserError`."""
    path = find(encoder, name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--model.encoder {encoder}: {name} cannot be read ({first_line(error)})") from error


def find(encoder: str, name: str) -> Path:
    """A file of an encoder: of its folder, of the hub's cache, or downloaded to that. Raises `UserError`."""
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        if (folder / name).is_file():
            return folder / name
        raise lacks(encoder, name, os.listdir(folder))
    if not NAME.fullmatch(encoder):
        raise UserError(
            f"--model.encoder {encoder}: no such folder, nor the name of a repository of the Hugging Face Hub"
        )
    return Path(hub_file(encoder, name))


def hub_file(repository: str, name: str) -> str:
    """The path of a file in the hub's cache, into which it is downloaded if necessary. Raises `UserError`."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise package_missing(error) from error
    try:
        if isinstance(cached := try_to_load_from_cache(repository, name), str):
            return cached
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=5)  # fails at once, where a download tries for long
        return hf_hub_download(repository, name)
    except RepositoryNotFoundError as error:
        raise UserError(f"--model.encoder {repository}: no such folder or public repository of the hub") from error
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise lacks(repository, name) from error
        raise cannot_get(repository, error) from error
    except Exception as error:  # the packages that download have types of their own
        raise cannot_get(repository, error) from error


def cannot_get(repository: str, error: Exception) -> UserError:
    """The error for an encoder that is in no cache and cannot be downloaded."""
    return UserError(f"cannot get the encoder {repository} ({first_line(error)}). Three ways out: {WAYS_OUT}")


def lacks(encoder: str, name: str, files: Sequence[str] = ()) -> UserError:
    """The error for an encoder without one of its files."""
    pickles = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5"))]
    if name == "model.safetensors":
        seen = f", only {first_few(sorted(pickles))}" if pickles else ""
        return UserError(
            f"--model.encoder {encoder}: it has no model.safetensors{seen}, and pickled weights can run code, so that "
            "they are not read: save it with save_pretrained(FOLDER) of transformers, or name a .safetensors file with "
            "--model.weights"
        )
    if name == "tokenizer.json":
        return UserError(
            f"--model.encoder {encoder}: it has no tokenizer.json: save one with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER) of transformers"
        )
    return UserError(f"--model.encoder {encoder}: it has no {name}, so that it is no encoder of transformers")


def as_json(text: str, what: str) -> dict[str, Any]:
    """The object that a JSON file holds. Raises `UserError`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{what} is not an object, but {type(content).__name__}")
    return content


def checked_config(given: dict[str, Any], what: str = "the encoder's configuration") -> dict[str, Any]:
    """What of a configuration describes the encoder, as plain types, with the defaults of its type.

    Args:
        given: The content of `config.json`, or what this function returned.
        what: What messages call it.

    Raises:
        UserError: It asks for code of its own, is of another family, or its values cannot be used.
    """
    if given.get("auto_map"):
        raise UserError(f"{what} asks for code of its own (auto_map), which is never run: choose another encoder")
    if (kind := given.get("model_type")) not in MODEL_TYPES:
        raise UserError(f"{what}: the model type is {str(kind)!r:.60}; it must be one of {', '.join(MODEL_TYPES)}")
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise package_missing(error) from error
    known = {*AutoConfig.for_model(kind).to_dict(), *WITHOUT_DEFAULT.get(str(kind), ())}
    names = AutoConfig.for_model(kind).attribute_map  # DistilBERT's `dim` is the `hidden_size` of the others
    kept = {name: value for name, value in given.items() if name in known and is_plain(name, value)}
    try:
        whole = AutoConfig.for_model(**{**kept, "model_type": kind})
        common = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
        sizes = {name: getattr(whole, name) for name in common}
    except Exception as error:  # of many types, for values of the wrong type
        raise UserError(f"{what} cannot be used ({' '.join(str(error).split())[:200]})") from error
    for name, value in sizes.items():
        high = MAX_LAYERS if name == "num_hidden_layers" else MAX_WIDTH
        if not isinstance(value, int) or not 1 <= value <= high:
            raise UserError(f"{what}: {names.get(name, name)} is {value!r:.40}, not a number from 1 to {high:,}")
    pad = getattr(whole, "pad_token_id", None)
    if pad is not None and not (isinstance(pad, int) and 0 <= pad < sizes["vocab_size"]):
        raise UserError(f"{what}: pad_token_id is {pad!r:.40}, which is no token of {sizes['vocab_size']:,}")
    plain = {name: value for name, value in whole.to_dict().items() if is_plain(name, value)}
    # Under these names, whatever the type calls them
    return {**plain, "model_type": kind, "pad_token_id": pad, **sizes}


def is_plain(name: str, value: Any) -> bool:
    """Whether a value of a configuration describes the network, and is of the types that a checkpoint may hold.

    Left out is what chooses code, such as an attention kernel of the hub, or has no effect on hidden states.
    """
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    plain = all(part is None or isinstance(part, str | int | float | list | dict) for part in inner)
    chooses = name in NOT_KEPT or name.startswith("_") or "implementation" in name or "kernel" in name
    return plain and not chooses and name != "quantization_config"


def make_encoder(config: dict[str, Any]) -> nn.Module:
    """An encoder with random weights, from what `checked_config` returned. Raises `UserError`.

    Called with `input_ids` and `attention_mask`, it returns an object with `last_hidden_state`, `(B, T, F)`.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise package_missing(error) from error
    try:
        net = AutoModel.from_config(AutoConfig.for_model(**config), dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # of many types, such as ValueError or KeyError for an unknown activation
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the encoder cannot be built from its configuration ({reason})") from error
    if getattr(net, "pooler", None) is not None:
        net.pooler = None  # trained for another task; and without gradients, DDP would wait for them
    return net


def load_encoder(net: nn.Module, encoder: str, weights: str) -> None:
    """Load pretrained weights into an encoder.

    Args:
        net: The encoder.
        encoder: See `read_encoder`.
        weights: `DEFAULT`, those of the encoder; or a safetensors file or a checkpoint of this project.

    Raises:
        UserError: They cannot be obtained, or are those of another encoder.
    """
    path = str(find(encoder, "model.safetensors")) if weights == "DEFAULT" else weights
    if not path.endswith((".safetensors", ".ckpt")):
        raise UserError(f"--model.weights {weights}: must be DEFAULT, none, a .safetensors file or a checkpoint")
    if not os.path.isfile(path):
        raise UserError(f"--model.weights {weights}: no such file")
    what = "the encoder's weights" if weights == "DEFAULT" else f"--model.weights {weights}"
    own = net.state_dict()
    state = {old_name(name): tensor for name, tensor in unwrap(read_tensors(path, what), what).items()}
    state = match_names(state, own, what)
    for name, tensor in own.items():
        if name not in state:
            raise UserError(f"{what} do not fit {encoder}: there is no tensor {name!r}")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"{what} do not fit {encoder}: the shape of {name!r} is {shapes}")
    net.load_state_dict({name: state[name] for name in own})
    if others := sorted(state.keys() - own.keys() - {"embeddings.position_ids"}):
        log.info(f"{what}: {len(others)} tensors that the encoder has no use for are left out: {first_few(others, 4)}")


def old_name(name: str) -> str:
    """The name of a tensor as it is today: the first files of BERT call the parameters of LayerNorm gamma and beta."""
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def layer_of(name: str, num_layers: int) -> int:
    """The layer of an encoder to which a parameter belongs, from 1; 0 for the embeddings, and what all layers share."""
    found = re.search(r"(?:^|\.)layers?\.(\d+)\.", name)
    return min(int(found[1]) + 1, num_layers) if found else 0
