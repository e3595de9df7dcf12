"""What the package index shows: where FMCAE_REPOSITORY has the repository's address, the README's links lead into it."""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

FILE_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


class Metadata(MetadataHookInterface):
    """Adds README and addresses to the metadata of pyproject.toml."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme`` and ``urls``; a tree without the address is built as it is."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {"Fashion-MNIST": "https://github.com/zalandoresearch/fashion-mnist"}
        if repository := os.environ.get("FMCAE_REPOSITORY", "").rstrip("/"):
            files = f"{repository}/blob/v{metadata['version']}"
            text = FILE_LINK.sub(rf"]({files}/\1)", text)
            metadata["urls"] |= {
                "Repository": repository,
                "Issues": f"{repository}/issues",
                "Changelog": f"{files}/CHANGELOG.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
