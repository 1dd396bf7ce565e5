"""Serve an exported model over HTTP, and with a page for people: http://127.0.0.1:8000. Needs no torch.

python scripts/serve.py --model export/model.int8.onnx
curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
curl -F file=@a.jpg -F file=@b.jpg "http://127.0.0.1:8000/predict?top_k=1"
"""

import re
import sys

from project.imports import quick_imports

with quick_imports():
    from project import INFINITY, UserError, check_ranges, decoding, num_cores
    from project.cli import Parser, log, run
    from project.exported import Exported, Runtime

RANGES = {"port": (0, 65_535), "threads": (1, INFINITY)}
UNITS = {"": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, type=str, help="model of scripts/export.py: an .onnx file")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen at; 0.0.0.0: all of them")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0: any that is free")
    parser.add_argument("--max_upload", type=str, default="20MB", help="largest body of a request")
    parser.add_argument("--runtime", type=Runtime, default="onnxruntime", help="what runs the model")
    parser.add_argument("--threads", type=int | None, help="threads of the runtime (default: one per core)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Serve until a signal: SIGTERM lets what is under way be finished, then exits with 143. Raises `UserError`."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    check_ranges("", RANGES, vars(args))
    max_upload = as_bytes(args.max_upload)
    try:
        from project.connections import address, listen, serve
        from project.serving import MAX_DECODED, make_app
    except ImportError as error:
        raise UserError(f"serving needs more packages: pip install -e '.[serve]' ({error})") from error
    threads = args.threads or num_cores()
    model = Exported(args.model, args.runtime, threads)
    app = make_app(model, max_upload)
    listening = listen(args.host, args.port)
    size = model.preprocessing["crop_size"]
    log.info(
        f"Listening at {address(listening)}: {args.model}, {model.precision}, {len(model.class_names)} classes, "
        f"{size} x {size} pixels, {model.runtime}, {threads} thread{'s' * (threads > 1)}"
    )
    decoding.MEMORY = decoding.Budget(MAX_DECODED)
    serve(app, listening)


def as_bytes(text: str) -> int:
    """The number of bytes that a text such as `20MB` means. Raises `UserError`."""
    found = re.fullmatch(r"(\d{1,12}) ?(kB|MB|GB|)", text)
    if not found or not (size := int(found[1]) * UNITS[found[2]]):
        raise UserError(f"--max_upload {text}: must be a size such as 500kB or 20MB")
    return size


def cli() -> None:
    """The command `finetune-serve`."""
    run(main)


if __name__ == "__main__":
    cli()
