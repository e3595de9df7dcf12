"""Markdown pages from Jinja2 templates, which lie beside the module that renders them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """Render a template file; a name that it uses and ``values`` lack is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=False,  # Markdown, of our own numbers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template.name).render(values)
