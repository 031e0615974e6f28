"""Pages of the API reference: one per public module, written when the site is built, so that none is forgotten."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).resolve().parents[1] / "src"


def modules() -> list[str]:
    """Dotted names of the public modules, in order."""
    names = []
    for path in sorted((SOURCE / "smec_st").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return names


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages to the navigation."""
    config.nav = [*(config.nav or []), {"API": [f"api/{name.removeprefix('smec_st.')}.md" for name in modules()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name in modules():
        short = name.removeprefix("smec_st.")
        text = f"# `{short}`\n\n::: {name}\n"
        files.append(File.generated(config, f"api/{short}.md", content=text))
    return files
