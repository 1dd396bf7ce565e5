"""What all scripts share: a command line with one-line errors, exit statuses and log messages. Imports no torch."""

import argparse
import difflib
import errno
import gc
import io
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser

from project import UserError, printable
from project.imports import limited

log = logging.getLogger(__name__)


class Parser(ArgumentParser):
    """An argument parser that reports errors on one line, suggests the closest option, and allows no abbreviations.

    Args:
        main_options: If given, `--help` shows only these options, each with its text, and `--help all` shows all. Where
            a text does not end with a default in brackets, the actual one is added.
        options: Those of jsonargparse's parser.
    """

    def __init__(self, main_options: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=main_options is None, **options)
        if main_options is not None:
            self.main_options = main_options
            self.add_argument(
                "-h", "--help", action=Help, help="show the main options, or with `--help all` all, and exit"
            )

    def allow_bare(self, flags: set[str]) -> None:
        """Let options that take true or false also be given without a value, which means true."""
        for action in self._actions:
            if action.dest in flags:
                action.nargs, action.const = "?", True

    def format_main_help(self) -> str:
        """The help on the main options: the whole description, and a line for each option."""
        lines = [f"usage: {self.prog} [--OPTION VALUE]...", "", (self.description or "").strip(), ""]
        for name, text in self.main_options.items():
            default = "" if text.endswith("]") else f" [{self.get_default(name)}]"
            lines.append(f"  --{name:<18} {text}{default}")
        return "\n".join([*lines, "", "All options: --help all. All values, as YAML: --print_config.", ""])

    def format_help(self, *args: Any) -> str:
        """The help on all options; of the description, the first line."""
        short, self.description = self.description, (self.description or "").split("\n")[0]
        try:
            return super().format_help(*args)
        finally:
            self.description = short

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_args(*args, **kwargs)
        except (UnicodeDecodeError, OSError) as error:  # raised for a file given with --config
            self.error(f"--config: cannot be read as YAML in UTF-8 ({error})")
        except (UnicodeEncodeError, OverflowError) as error:  # for a number of hundreds of digits, for example
            self.error(f"a value cannot be used ({error})")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line on what is wrong with the options, and exit with status 2."""
        text = " ".join(message.split())
        options = sorted({name for action in self._actions for name in (*action.option_strings, action.dest)})
        if wrong := re.match(r'Parser key "([\w.]+)": Expected an? typing.Literal\[(.*)\]. Got value: (.*)', text):
            choices = wrong[2].replace("'", "").split(", ")
            text = f"--{wrong[1]} {wrong[3]}: must be one of {', '.join(choices)}{nearest(wrong[3], choices)}"
        elif wrong := re.match(r'Parser key "([\w.]+)": Expected an? (.*)\. Got value: (.*)', text) or re.match(
            r'Parser key "([\w.]+)": .* Subtypes: \[(.*)\] Errors: .* Given value: ?(.*)', text
        ):
            types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", wrong[2]).replace("typing.", "")
            text = f"--{wrong[1]} {wrong[3]}: must be of type {types.replace('NoneType', 'null')}"
            if (
                "bool" in types and "data.root" in options and os.path.exists(wrong[3])
            ):  # after an option without a value
                text += as_root(wrong[3])
        elif wrong := re.match(r"unrecognized arguments: (([^\s=]+).*)", text):
            paths = [given for given in (wrong[1], wrong[2]) if "data.root" in options and os.path.exists(given)]
            known = [name for name in options if name.startswith("-")]
            first = {f"--{name}" for name in getattr(self, "main_options", {})}
            text += as_root(paths[0]) if paths else nearest(wrong[2], known, first)
        elif wrong := re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", text):
            text += nearest(f"{wrong[1]}.{wrong[2]}", options)
        elif wrong := re.search(r"Option '([\w.]+)' is not accepted", text):
            text += nearest(wrong[1], options)
        elif wrong := re.match(r"the following arguments are required: (.*)", text):
            missing = [f"--{name}" if f"--{name}" in options else name for name in wrong[1].split(", ")]
            text = f"{' and '.join(missing)} missing (see --help)"
        self.exit(2, f"{self.prog}: error: {printable(text)}\n")


def add_model_options(parser: Parser) -> None:
    """Add the options for what is to be run, and on what: a checkpoint by Lightning, or an exported model."""
    parser.add_argument(
        "--ckpt",
        required=True,
        type=str,
        help="checkpoint of scripts/train.py, or `best` or `last` of the newest run; or an exported model.onnx",
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument(
        "--accelerator", type=str, default="auto", help="cpu, gpu, mps, …; `auto` picks the best available"
    )
    parser.add_argument("--precision", type=str, default="auto", help="`auto`, or one of Lightning's values")
    parser.add_argument(
        "--runtime", type=Literal["onnxruntime", "openvino"] | None, help="what runs model.onnx (default: onnxruntime)"
    )


def is_exported(args: Any) -> bool:
    """Whether `--ckpt` names an exported model. Raises `UserError` for options that do not apply to such a file."""
    exported = args.ckpt.lower().endswith(".onnx")
    for_checkpoints = {"accelerator": "auto", "precision": "auto", "devices": 1}
    for name, default in (for_checkpoints if exported else {"runtime": None}).items():
        if (value := getattr(args, name, default)) != default:
            kind = "an exported model runs on the CPU as it is" if exported else "a checkpoint is run by PyTorch"
            raise UserError(f"--{name} {value}: does not apply to {args.ckpt}: {kind}")
    return exported


class Help(argparse.Action):
    """`--help`, or `--help all`."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        options = {**options, "nargs": "?", "metavar": "all", "default": argparse.SUPPRESS}
        super().__init__(option_strings, argparse.SUPPRESS, **options)

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        """Print the main options or, if `value` is `all`, all of them, and exit."""
        print(parser.format_help() if value == "all" else parser.format_main_help(), end="")
        parser.exit()


def as_root(path: str) -> str:
    """The option for a folder that was given without one, in parentheses."""
    return f" (did you mean --data.root {shlex.quote(path)}?)"


def nearest(name: str, options: list[str], first: Collection[str] = ()) -> str:
    """The option that was probably meant, in parentheses: the same of another group, or else one spelled alike.

    Args:
        name: What was given.
        options: Those that there are.
        first: Of options as close as each other, one of these is named.
    """
    last = name.rpartition(".")[2]
    alike = [option for option in options if "." in name and option.rpartition(".")[2] == last]
    close = alike or difflib.get_close_matches(name, options, n=3)
    close.sort(key=lambda option: (-difflib.SequenceMatcher(None, option, name).ratio(), option not in first))
    return f" (did you mean {close[0]}?)" if close else " (see --help)"


def status_for(error: BaseException, script: str) -> int | str | None:
    """What `sys.exit` is to be called with after an error: a line for the user; None for an error in the program."""
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more at exit
        return 128 + 13 if error.errno == errno.EPIPE else f"{script}: error: cannot write ({error.strerror})"
    if isinstance(error, MemoryError):
        return f"{script}: error: out of memory{limited()}"
    if not is_for_the_user(error):
        return None
    text = str(error).strip()
    if "Original Traceback" in text:  # raised in a data worker; the last line is the original message
        text = text.split("\n")[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    return f"{script}: error: {printable(' '.join(text.split()))}"


def run(main: Callable[[], Any]) -> NoReturn:
    """Call a script's main function; a `UserError` is printed on one line, with exit status 1.

    Ctrl-C exits with 130, SIGTERM with 143 and SIGHUP (a closed terminal) with 129, as if they had not been caught;
    training catches them to save first. It exits with 141, without a word, if nobody reads the output any more, as in
    `predict.py … | head -1`.
    """
    open_streams()
    set_up_messages()
    script = Path(sys.argv[0]).name
    threading.excepthook = report_in_thread
    received: list[int] = []

    def stop_at_once(signum: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + (received[0] if received else signum))

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        if received:  # while the first signal is still being handled
            stop_at_once(signum, frame)
        received.append(signum)
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)

    for signum in stopping_signals():
        signal.signal(signum, stop)
    try:
        main()
        sys.stdout.flush()
    except BaseException as error:
        if received:  # Lightning may change the exit, or the interrupted code may raise another error
            sys.exit(128 + received[0])
        if (status := status_for(error, script)) is None:
            raise
        sys.exit(status)
    finally:
        for signum in stopping_signals():  # only the exit is left
            signal.signal(signum, stop_at_once)
        gc.freeze()  # at exit Python inspects all objects once more, which takes a second after importing torch
    sys.exit(128 + received[0] if received else 0)  # Python drops exceptions in `__del__` and in callbacks from C


def open_streams() -> None:
    """Let output streams that the caller has closed lead nowhere, and none fail at a letter that it cannot show."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask a process to end: Ctrl-C, SIGTERM and, unless `nohup` blocks it, SIGHUP."""
    hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def report_in_thread(args: Any) -> None:
    """What `threading` calls for an error in a thread: one line if a file, as TensorBoard's, cannot be written."""
    if isinstance(args.exc_value, OSError):
        log.error(f"{args.exc_value}")
    else:
        threading.__excepthook__(args)


class StderrHandler(logging.StreamHandler):
    """Write to the current `sys.stderr`: rich replaces it, so that messages appear above the progress bar."""

    def format(self, record: logging.LogRecord) -> str:
        """The message on one line, without what would control the terminal: it may name files and classes."""
        return printable(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        self.stream = sys.stderr
        super().emit(record)


def set_up_messages() -> None:
    """Log to stderr, from all ranks but 0 only errors."""
    ours = logging.getLogger("project")
    if not ours.handlers:
        ours.addHandler(StderrHandler())
    rank = getattr(of_lightning("pytorch.utilities.rank_zero", "rank_zero_only"), "rank", 0)
    ours.setLevel(logging.INFO if rank == 0 else logging.ERROR)


def is_for_the_user(error: BaseException) -> bool:
    """Whether an error says what to do: one of ours, or Lightning's about its options."""
    return isinstance(
        error, (UserError, of_lightning("fabric.utilities.exceptions", "MisconfigurationException") or ())
    )


def of_lightning(module: str, name: str) -> Any:
    """What a module of Lightning calls so; None if nothing has imported it, for that takes seconds."""
    return getattr(sys.modules.get(f"lightning.{module}"), name, None)
