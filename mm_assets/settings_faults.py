"""What is wrong with a file that people write, above all with settings, in the words of that file.

Put here: sentences for what pydantic says in Python's words. Keep out: the settings.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SENTENCES = {
    "missing": "it must be given",
    "tuple_type": "it must be a list",
    "too_short": "it must not be empty",
    "string_too_short": "it must not be empty",
    "model_type": "it must be a section: names with values below it",
    "string_type": "it must be a text; put it in quotes",
    "path_type": "it must be a path",
    "int_type": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "float_parsing": "it must be a number",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
}


def explain_faults(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Yield a line for each fault: the setting, what is wrong with it, and for an unknown name the one that is meant."""
    for fault in error.errors():
        yield f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {explain_fault(fault, model, 'setting')}"


def explain_fault(fault: ErrorDetails, model: type[BaseModel], noun: str) -> str:
    """Return what is wrong at one place; the noun is what a name stands for in the file."""
    if fault["type"] == "extra_forbidden":
        return f"there is no such {noun}{_meant(model, fault['loc'])}"
    plain = fault["msg"].removeprefix("Value error, ").replace("Input should", "it must")
    return _SENTENCES.get(fault["type"], plain)


def _meant(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    *sections, name = place
    section: Any = model
    for part in sections:
        if isinstance(part, str):  # numbers count the items of a list, whose sections are alike
            annotation = section.model_fields[part].annotation
            section = next(iter(get_args(annotation)), annotation)
    near = get_close_matches(str(name), section.model_fields, 1)
    return f"; is `{near[0]}` meant?" if near else ""
