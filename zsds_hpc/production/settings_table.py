"""`zsds settings`: every key of a pipeline's settings with type, unit, range, default and meaning."""

import argparse
import types
import typing
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from pydantic.fields import FieldInfo

from zsds_hpc.core.params import Params
from zsds_hpc.pipelines.registry import NAMES, get_pipeline

_HEADINGS = ("key", "type", "unit", "range", "default", "meaning")


@dataclass(frozen=True)
class Row:
    """One key of a pipeline's settings, as text.

    Attributes
    ----------
    key : str
        Dotted, as for ``--set``.
    kind, unit, limits, default, meaning : str
    """

    key: str
    kind: str
    unit: str
    limits: str
    default: str
    meaning: str


def add_command(commands: Any) -> None:
    """Add `zsds settings` to the command line."""
    parser = commands.add_parser(
        "settings", help="list every setting of a pipeline with unit, range and default",
        epilog="example: zsds settings calibrate --key cosmicrays",
    )  # fmt: skip
    parser.add_argument("pipeline", choices=NAMES, metavar="PIPELINE", help=", ".join(NAMES))
    parser.add_argument("--key", default="", metavar="TEXT", help="only keys that begin with TEXT")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    rows = [row for row in rows_of(get_pipeline(options.pipeline).params) if row.key.startswith(options.key)]
    print(as_markdown(rows) if options.markdown else as_text(rows))
    return 0


def rows_of(kind: type[Params]) -> list[Row]:
    """Rows of a declaration and of the declarations in it, in their order."""
    return list(_walk(kind, kind.model_construct(), ""))


def _walk(kind: type[Params], defaults: Params, prefix: str) -> Iterator[Row]:
    for name, info in kind.model_fields.items():
        default = getattr(defaults, name, ...)
        if isinstance(default, Params):
            yield from _walk(type(default), default, f"{prefix}{name}.")
        else:
            yield _row(f"{prefix}{name}", info, default)


def _row(key: str, info: FieldInfo, default: Any) -> Row:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    shown = "required" if default is ... else _plain(default)
    return Row(
        key, _type_name(info.annotation), str(extra.get("unit", "")), _limits(info), shown, info.description or ""
    )


def _limits(info: FieldInfo) -> str:
    limits = {name: getattr(item, name) for item in info.metadata for name in ("ge", "le") if hasattr(item, name)}
    if len(limits) == 2:
        return f"{limits['ge']:.10g} to {limits['le']:.10g}"
    return " ".join(f"{'≥' if name == 'ge' else '≤'} {value:.10g}" for name, value in limits.items())


def _type_name(annotation: Any) -> str:
    arguments = [_type_name(item) for item in typing.get_args(annotation) if item is not Ellipsis]
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(arguments)
    if origin is not None:
        return f"list of {arguments[0]}" if origin in (tuple, list) else " to ".join(arguments)
    return {type(None): "null", str: "text"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plain(value: Any) -> str:
    """A default as it is written in YAML."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_plain(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def as_text(rows: list[Row]) -> str:
    """Rows in columns."""
    table = [_HEADINGS, *(astuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table)


def as_markdown(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS)]
    lines += [(f"`{row.key}`", *astuple(row)[1:]) for row in rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
