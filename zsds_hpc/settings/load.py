"""YAML settings into frozen, checked parameters, with errors that name the file, the key and the nearest valid one.

PyYAML's own safe loader reads ``1e-3`` as text, ``12:34:56`` as a number and ``no`` as False, lets the last of two
equal keys win and expands aliases without limit. `StrictLoader` does none of these.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from zsds_hpc.core.errors import SettingsError
from zsds_hpc.core.params import Params

P = TypeVar("P", bound=Params)
CONFIG_DIR = Path(__file__).parents[2] / "config"


class StrictLoader(yaml.SafeLoader):
    """YAML 1.2 scalars, unique keys, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed{self.peek_event().start_mark}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Refuse a key that stands twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"key {', '.join(sorted(twice))} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"(?:true|false)\Z", "tf"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)\Z", "-+0123456789"),  # 017 stays text: the safe loader would make it 15
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z", "-+.0123456789"),
):
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def read_yaml(path: str | Path) -> Any:
    """Content of a YAML file.

    Raises
    ------
    SettingsError
        The file is missing or not YAML of the strict kind.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{path}: not a text file") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Content of YAML text; SettingsError, naming the source, where it is not of the strict kind."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except RecursionError:
        raise SettingsError(f"{source}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{source}: {' '.join(str(error).split())}") from None


def load_params(kind: type[P], path: str | Path, overrides: dict[str, Any] | None = None) -> P:
    """Read a settings file into its declaration.

    Parameters
    ----------
    kind : subclass of Params
    path : str or Path
    overrides : dict, optional
        Dotted keys, such as ``cosmicrays.n_sigma``, that replace what the file says.
    """
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: holds {_short(content)}, not keys and values")
    for dotted, value in (overrides or {}).items():
        _set_dotted(content, dotted, value)
    return check(kind, content, str(path))


def _set_dotted(content: dict, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise SettingsError(f"{dotted}: {name!r} holds {_short(content)}, not keys and values")
    content[last] = value


def check(kind: type[P], content: Any, source: str) -> P:
    """Validate content against its declaration.

    Raises
    ------
    SettingsError
        Names the source, every bad key and, for an unknown key, the nearest valid one.
    """
    try:
        return kind.model_validate_json(json.dumps(content, allow_nan=True))
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(kind, item, source) for item in error.errors())) from None
    except (TypeError, RecursionError) as error:
        raise SettingsError(f"{source}: {error}") from None


def _explain(kind: type[Params], item: Any, source: str) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _field_names(kind, item["loc"][:-1]), 1)
        return f"{source}: unknown key {where!r}" + (f", did you mean {near[0]!r}?" if near else "")
    if item["type"] == "missing":
        return f"{source}: key {where!r} is missing"
    if not where:
        return f"{source}: {item['msg'].removeprefix('Value error, ')}"
    return f"{source}: key {where!r}: {item['msg'].lower()}, not {_short(item['input'])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _field_names(kind: Any, location: tuple) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in getattr(kind, "model_fields", {}):
            kind = kind.model_fields[part].annotation
            kind = next((a for a in getattr(kind, "__args__", ()) if hasattr(a, "model_fields")), kind)
    return list(getattr(kind, "model_fields", {}))
