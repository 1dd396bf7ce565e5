"""The options of a training script: those of the data and the model from their signatures, those of the Trainer."""

import inspect
import json
import logging
import os
import re
from argparse import SUPPRESS
from typing import Any, Literal, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch import Trainer

from project import INFINITY, UserError, check_ranges
from project.cli import Parser
from project.listing import expanded
from project.loggers import check_loggers

log = logging.getLogger(__name__)

RANGES = {"seed": (0, 2**32 - 1), "save_every_minutes": (0, INFINITY), "save_every_steps": (1, INFINITY)}

# What `--help` shows, besides the `MAIN_OPTIONS` of the data and the model
MAIN_OPTIONS = {
    "max_epochs": "how often to go through the training samples; 0 fits the head alone",
    "accelerator": "cpu, gpu, mps, …",
    "devices": "how many of them",
    "precision": "bf16-mixed (half the bits, faster on many devices), 32-true, …",
    "default_root_dir": "folder in which `lightning_logs` is created [.]",
    "name": "name of the run folder [version_0, version_1, …]",
    "logger": "WandbLogger, MLFlowLogger, CSVLogger, …; or false [TensorBoardLogger]",
    "seed": "seed of weights, data order and augmentation",
    "ckpt_path": "go on from a checkpoint: last, auto or a path [start anew]",
    "config": "YAML file with any of these options; later ones win [none]",
}


def make_parser(description: str, data_class: Any, model_class: Any) -> tuple[Parser, list[str]]:
    """The parser of a training script, and the names of the Trainer options."""
    main_options = {
        **{f"data.{name}": text for name, text in data_class.MAIN_OPTIONS.items()},
        **{f"model.{name}": text for name, text in model_class.MAIN_OPTIONS.items()},
        **MAIN_OPTIONS,
    }
    parser = Parser(main_options, description=description, usage="%(prog)s [--OPTION VALUE]...")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options; later ones win")
    parser.add_argument("--name", type=str | None, help="name of the run folder, instead of version_N")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, data order and augmentation")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        help="resume from this checkpoint: a path, or `last` of the newest run (with this --name, if given); "
        "`auto`: its `last` if there is one, otherwise start a new run",
    )
    parser.add_argument(
        "--monitor", type=str, default=model_class.MONITOR, help="the validation metric that selects best.ckpt"
    )
    parser.add_argument(
        "--save_every_minutes", type=float | None, default=10.0, help="also save last.ckpt within epochs, this often"
    )
    parser.add_argument("--save_every_steps", type=int | None, help="likewise, but in optimizer steps")
    for group, described in (("data", data_class), ("model", model_class)):
        arguments = inspect.signature(described).parameters.values()
        from_program = {a.name for a in arguments if a.kind is not inspect.Parameter.KEYWORD_ONLY}
        parser.add_class_arguments(described, group, skip=from_program, instantiate=False)
        for name in described.REMOVED:
            parser.add_argument(f"--{group}.{name}", type=Any, help=SUPPRESS)
    trainer_options = parser.add_class_arguments(Trainer, None, skip={"precision"}, instantiate=False)
    precisions = get_type_hints(Trainer.__init__)["precision"]
    parser.add_argument(
        "--precision", type=Literal["auto"] | precisions, default="auto", help="`auto`, or one of Lightning's values"
    )
    parser.add_argument("--find", type=Any, help=SUPPRESS)  # of older versions
    # Our samplers divide the data among the processes, and count every image once.
    parser.set_defaults(max_epochs=10, log_every_n_steps=10, use_distributed_sampler=False, enable_model_summary=False)
    for prefix, described in (("data.", data_class), ("model.", model_class), ("", Trainer)):
        hints = get_type_hints(described.__init__)  # type: ignore[misc]
        parser.allow_bare({prefix + name for name, hint in hints.items() if bool in (hint, *get_args(hint))})
    return parser, [*trainer_options, "precision"]


def check_options(options: Namespace, data_class: Any, model_class: Any) -> None:
    """Reject unusable options before any work, and drop those of older versions. Raises `UserError`."""
    for group, described in (("data", data_class), ("model", model_class)):
        for name in described.REMOVED:
            if options[group].pop(name) is not None:
                log.warning(f"--{group}.{name} has no effect any more")
        for name, value in current_values(described, vars(options[group])).items():
            if options[group][name] != value:
                log.warning(f"--{group}.{name} {options[group][name]} is gone, it is now {value}")
                options[group][name] = value
        described.check_options(**options[group])
    if options.find is not None:
        raise UserError("--find: values are now found by python scripts/find.py, with the same options")
    if options.barebones:
        raise UserError(
            "--barebones: no figures would be left to report; for a run that is nearly as bare: --logger false "
            "--enable_checkpointing false --enable_progress_bar false --num_sanity_val_steps 0"
        )
    check_ranges("", RANGES, vars(options))
    if options.monitor not in (known := model_class.monitors()):
        raise UserError(f"--monitor {options.monitor}: must be one of {', '.join(known)}")
    if options.name is not None and (
        not re.fullmatch(r"\w[^/\\]{0,99}", options.name) or re.search(r"_\d+$", options.name)
    ):
        raise UserError(
            f"--name {options.name}: must be usable as the name of a folder; an ending like _1 numbers the runs "
            "of one name"
        )
    check_loggers(options.logger)


def current_values(described: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options in which the values of older versions are replaced as `described.RENAMED` says, {option: {old: new}}."""
    return {
        name: described.RENAMED[name].get(value, value) if name in described.RENAMED else value
        for name, value in options.items()
    }


def json_config(parser: Parser, options: Namespace) -> dict[str, Any]:
    """The resolved options as JSON types, with paths that are valid from any working directory."""
    config = yaml.safe_load(parser.dump(options, skip_validation=True))
    for group, name in (("data", "root"), ("data", "exclude"), ("model", "weights"), ("model", "teacher")):
        if os.path.exists(path := expanded(config[group].get(name) or "")):
            config[group][name] = os.path.abspath(path)
    return {name: value for name, value in config.items() if name not in ("config", "ckpt_path", "find")}


def as_argv(options: dict[str, Any], prefix: str = "--") -> list[str]:
    """The command line for options by name, in which those of a group are a dictionary; objects cannot be given."""
    argv: list[str] = []
    for name, value in options.items():
        if isinstance(value, dict) and prefix == "--":
            argv += as_argv(value, f"{prefix}{name}.")
        else:
            text = os.fspath(value) if isinstance(value, str | os.PathLike) else json.dumps(value)
            argv.append(f"{prefix}{name}={text}")
    return argv
