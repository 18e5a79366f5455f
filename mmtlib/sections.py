"""Sections of parameter files, checked by pydantic: a wrong field is said in one sentence, with the remedy."""

import difflib
import json
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from mmtlib.overlays import ParamsError


class Section(BaseModel):
    # Strict: no "32" for 32 and no 1 for true; YAML 1.2 already gives the right types, 1e-3 included.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)

# What is wanted, by pydantic's name of the error, where its own words do not fit the sentence.
_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "float_type": "a number",
    "int_type": "a whole number",
    "invalid-json-value": "a number, text, true, false, null, a list or a mapping",
    "list_type": "a list, as in [0, 1]",
    "model_type": "a mapping of fields to values",
    "string_pattern_mismatch": "a name of lower-case letters, digits, _ and -",
    "string_type": "text",
    "too_short": "given at least one entry",
}


def check(model: type[S], values: Any, where: str) -> S:
    """Return `values` as a checked section, or raise a ParamsError that begins with `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # An unknown key explains a missing one (a typo is both), so it goes first.
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
        raise ParamsError(f"{where}: {_sentence(problems[0], model)}{more}.") from None


def _sentence(problem: dict[str, Any], model: type[Section]) -> str:
    """Say what is wrong with one field, what was given, what is wanted and what to do."""
    loc = [str(part) for part in problem["loc"] if part != "[key]"]
    field, given, kind = ".".join(loc), problem["input"], problem["type"]
    if kind == "extra_forbidden":
        known = _fields(model, loc[:-1])
        close = difflib.get_close_matches(loc[-1], known, n=1)
        hint = f"did you mean {close[0]}" if close else f"use one of {', '.join(known)}"
        return f"{field} is not a known field; {hint}, or remove it"
    if kind == "missing":
        return f"{field} is missing; add it (params.yaml shows every field)"
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    if kind == "value_error":
        return f"{field}: {message}" if field else message
    wanted = _WANTED.get(kind) or message.removeprefix("Input should be ")
    shown = json.dumps(given, default=str)
    return f"{field or 'the file'} is {shown} but must be {wanted}; change it"


def _fields(model: type[Section], path: list[str]) -> list[str]:
    """List the fields that may stand below `path`."""
    while path:
        annotation = model.model_fields[path.pop(0)].annotation
        if get_origin(annotation) in (dict, list):  # of sections: step over the name
            path.pop(0)
        # Of dict[name, section] and section | None it is the section.
        model = next(kind for kind in (*get_args(annotation), annotation) if isinstance(kind, type(Section)))
    return list(model.model_fields)
