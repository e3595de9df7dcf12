"""What typer's parser finds wrong with a command line, as one line in fmcae's own words."""

import os
from typing import Any, cast

import typer

# What typer's parser raises has this base in common, for which typer has no public name.
ParserError = cast(type[Exception], typer.BadParameter.__base__)
RULES = {
    "integer": "must be an integer",
    "valid int": "must be an integer",
    "number": "must be a number",
    "float": "must be a number",
}


def usage_line(error: Any, arguments: list[str]) -> str:
    """One line for an error of typer's parser, with the option and its value.

    Args:
        arguments: what was typed after the program's name.
    """
    message: str = error.format_message()
    param: Any = getattr(error, "param", None)
    value = None if param is None else _typed_value(param.opts, arguments)
    if value is not None:  # its wording differs between typer's versions, and some leave out the value
        rule = next((rule for word, rule in RULES.items() if word in message), message)
        return f"{param.name} (={value}) {rule}"
    option = getattr(error, "option_name", None)
    if option is not None and message.startswith("No such option"):
        return f"no such option: {option}{_advice(error, option, arguments)}"
    context = getattr(error, "ctx", None)
    where = f" (see {context.command_path} --help)" if context is not None else ""
    return f"{message[:1].lower()}{message[1:].rstrip('.')}{where}"


def _typed_value(options: list[str], arguments: list[str]) -> str | None:
    """The last value that one of an option's names was given, as in ``--name value`` or ``--name=value``."""
    value = None
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        name, equals, rest = argument.partition("=")
        if name in options:
            value = rest if equals else "".join(arguments[index + 1 : index + 2])
    return value


def _advice(error: Any, option: str, arguments: list[str]) -> str:
    typed = next((argument for argument in arguments if argument.startswith(option)), option)
    is_one_dash = typed[1:2] != "-" and len(typed) > 2
    if is_one_dash or os.path.lexists(typed):
        return f"; if {typed} is a file, write ./{typed}"
    likely = sorted(getattr(error, "possibilities", None) or ())
    return f"; is it {' or '.join(likely)}?" if likely else ""
