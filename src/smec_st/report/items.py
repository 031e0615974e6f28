"""What a report shows of documents and queries: their texts, or thumbnails of their images."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from smec_st.data import Collection
from smec_st.data.beir import Side
from smec_st.data.images import IMAGE_SUFFIXES
from smec_st.data.load import text_records

SHORT, LONG = 160, 2000  # characters of a text that are shown at once, and when it is opened
THUMBNAIL = 112  # pixels of the longer side
NOT_SHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Item:
    """A document or a query as a person sees it.

    Attributes:
        id: Its id.
        title: Its title, or an empty string.
        text: Its text, or an empty string.
        thumbnail: Its image as a ``data:`` address, or an empty string.
    """

    id: str
    title: str = ""
    text: str = ""
    thumbnail: str = ""

    @property
    def full(self) -> str:
        """Title and text, or the id where there is neither, cut to :data:`LONG` characters."""
        return _cut(_showable(f"{self.title}\n{self.text}".strip() or self.id), LONG)

    @property
    def short(self) -> str:
        """The same on one line, cut after a word to at most :data:`SHORT` characters."""
        text = " ".join(f"{self.title} {self.text}".split()) or self.id
        return _showable(text if len(text) <= SHORT else f"{text[:SHORT].rsplit(' ', 1)[0]} …")

    @property
    def is_long(self) -> bool:
        """Whether :attr:`short` leaves something out."""
        return len(f"{self.title} {self.text}".strip() or self.id) > SHORT


@dataclass(frozen=True)
class Items:
    """Documents and queries of a collection by row; only those that were asked for."""

    documents: dict[int, Item]
    queries: dict[int, Item]


def read_items(
    collection: Collection, source: str | Path | None, documents: Iterable[int], queries: Iterable[int]
) -> Items:
    """Read what can be shown of some documents and queries.

    Args:
        collection: The collection, whose ids are shown where there is nothing else.
        source: Where the collection was loaded from: texts are read there, and images whose ids are paths. None to
            show the texts of documents that the collection holds, and otherwise ids.
        documents: Rows of documents.
        queries: Rows of queries.
    """
    sides = (
        {row: collection.corpus_ids[row] for row in set(documents)},
        {row: collection.query_ids[row] for row in set(queries)},
    )
    if source is None and collection.texts:
        titles = collection.titles or [""] * len(collection.texts)
        texts = {row: Item(key, titles[row], collection.texts[row]) for row, key in sides[0].items()}
        return Items(texts, {row: Item(key) for row, key in sides[1].items()})
    records = None if source is None else text_records(source)
    if records is not None:
        read = (Side.read(side, str(source), set(ids.values())) for ids, side in zip(sides, records, strict=True))
        return Items(*(_with_texts(ids, side) for ids, side in zip(sides, read, strict=True)))
    folder = None if source is None else Path(source)
    return Items(*({row: Item(key, thumbnail=_thumbnail(folder, key)) for row, key in ids.items()} for ids in sides))


def _with_texts(ids: dict[int, str], side: Side) -> dict[int, Item]:
    rows = {key: place for place, key in enumerate(side.ids)}
    found = {row: rows.get(key) for row, key in ids.items()}
    return {
        row: Item(ids[row]) if place is None else Item(ids[row], side.titles[place], side.texts[place])
        for row, place in found.items()
    }


def _thumbnail(folder: Path | None, key: str) -> str:
    """The image with this path inside the folder, small; an empty string if there is none that can be read."""
    from PIL import Image, ImageOps

    if folder is None or not key.lower().endswith(IMAGE_SUFFIXES) or "\x00" in key:
        return ""
    path = (folder / key).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return ""
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()} … ({len(text):,} characters in all)"


def _showable(text: str) -> str:
    """Replace characters that HTML or UTF-8 cannot hold by the character that stands for them."""
    return NOT_SHOWN.sub("\ufffd", text)
