"""Parameter files as YAML has them: an overlay laid over its base, rows of `ablations` with what they inherit."""

import copy
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

ROOT = Path(__file__).resolve().parents[1]  # the repository, of this (editable) install
STAGES = ("pretrain_mat", "pretrain_mvit", "train_mmt")  # those that train one run each


class ParamsError(ValueError):
    """A parameter is missing, unknown or out of range; the message is one sentence that says what to do."""


_OWN = ("group", "seeds", "folds", "robustness")  # of a row, which another does not inherit
REPLACED = ("download", "ablations", "pairs")  # whole by an overlay: fields or names are others in each study


def compose(path: str | Path, root: Path = ROOT, above: tuple[str, ...] = ()) -> Any:
    """The values of a parameter file as YAML has them, an overlay laid over its base. Raises ParamsError."""
    values = _read(path, root)
    if not isinstance(values, dict) or "base" not in values:
        return values
    base, above = values.pop("base"), (*above, str(path))
    if not isinstance(base, str) or base in above:
        raise ParamsError(f"{path}: base is {base!r} but must name another parameter file; write params.yaml.")
    return _laid_over(compose(base, root, above), values)


def _laid_over(below: Any, above: Any, name: str = "") -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)) or name in REPLACED:
        return above
    return below | {key: _laid_over(below.get(key), value, key) for key, value in above.items()}


def put(values: Any, field: str, value: Any, where: str) -> None:
    """Put `value` at a dotted path."""
    *sections, last = field.split(".")
    for section in sections:
        values = values.setdefault(section, {}) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise ParamsError(f"{where}: {field} leads through a field that holds no others; correct it.")
    values[last] = value


def whole_row(name: str, values: dict[str, Any], where: str, above: tuple[str, ...] = ()) -> Any:
    """A row of the table `ablations`, whole: what its `base` has, a stage or another row, and what it sets.

    Where it stands, for which seeds and folds, and how it is tested is not inherited.
    """
    rows, above = {stage: values.get(stage) for stage in STAGES} | values["ablations"], (*above, name)
    row = rows[name]
    if not isinstance(row, dict) or "base" not in row:
        return row
    base, changed = row["base"], row.get("set") or {}
    is_known = isinstance(base, str) and base in rows and base not in above and isinstance(changed, dict)
    found = whole_row(base, values, where, above) if is_known else None
    if not isinstance(found, dict):
        raise ParamsError(f"{where}: ablations.{name} has the base {base!r}; name one of {', '.join(STAGES)} or a row.")
    whole = copy.deepcopy({key: value for key, value in found.items() if key not in _OWN})
    for field, value in changed.items():
        put(whole, str(field), value, f"{where}: ablations.{name}")
    return whole | {key: value for key, value in row.items() if key not in ("base", "set")}


def _read(path: str | Path, root: Path) -> Any:
    """A YAML file as it is."""
    try:
        text = (root / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file in {root}; name params.yaml or a file of params/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read ({error}); it must be a UTF-8 text file.") from error
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ParamsError(f"{path}: not valid YAML{line} ({problem}); mend that line.") from None
