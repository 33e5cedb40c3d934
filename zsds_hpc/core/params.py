"""Declared parameters: every field has a type, a unit, a range and one sentence.

A pipeline or a method declares its settings as a subclass of `Params`, next to the functions that use them.
The settings loader, the command line and the documentation all read this one declaration.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Params(BaseModel):
    """Frozen, strict set of parameters; unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def param(default: Any, doc: str, unit: str = "", ge: float | None = None, le: float | None = None) -> Any:
    """Declare one parameter.

    Parameters
    ----------
    default : Any
        Default value; ``...`` makes the field required.
    doc : str
        One sentence for the documentation and for error messages.
    unit : str, optional
        Physical unit, empty for a pure number.
    ge, le : float, optional
        Inclusive range.
    """
    return Field(default, description=doc, ge=ge, le=le, json_schema_extra={"unit": unit})
