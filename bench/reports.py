"""The file of a measurement: what it is, what was measured, when, and by which command."""

import json
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def write_report(path: Path | None, what: str, **values: Any) -> dict[str, Any]:
    """Write ``values`` as JSON, if there is a path, and return all that is written."""
    date = datetime.now(timezone.utc).date().isoformat()
    command = shlex.join(["python", *map(_without_place, sys.argv)])
    report = {"schema_version": 1, "what": what, **values, "date": date, "command": command}
    if path is not None:
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _without_place(argument: str) -> str:
    """An argument of the command without this machine's folders."""
    return Path(argument).name if Path(argument).is_absolute() else argument
