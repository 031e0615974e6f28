"""Find the vectors in JSON: in records with a field of vectors, and in the saved answers of APIs and databases.

Every known answer has one description in :data:`ANSWERS`. An object must match exactly one of them, or be a record;
anything else is refused. A request's own id never becomes the id of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeGuard

from smec_st.data.codes import CODES
from smec_st.data.ids import find_id, id_text
from smec_st.system.errors import DataError, one_line, some

#: Fields of a record that hold a vector when no other is named.
VECTOR_NAMES = ("embedding", "vector", "embeddings", "values", "vectors")


#: What answers with one list per code call floats.
FLOAT_NAMES = ("float", "float_", "base64")


@dataclass(frozen=True)
class Item:
    """One vector of a text file, not parsed yet.

    Attributes:
        vector: A list of numbers, or a text.
        id: Its id, or None.
        model: The model that the answer names, or None.
        where: Its file and line, for error messages.
        codes: What the numbers are, where the answer says so; see :mod:`smec_st.data.codes`.
        fault: Why it cannot be read, if that is known already; the others of the file may be good.
    """

    vector: Any
    id: str | None
    model: str | None
    where: str
    codes: str | None = None
    fault: str = ""


@dataclass(frozen=True)
class Answer:
    """Where an answer holds its vectors. Paths are keys joined by dots; an empty path is the value itself.

    Attributes:
        source: Who answers so.
        entries: Path of the list (or object by id) of entries; None if the answer is the only entry.
        vector: Path of the vector in an entry.
        marks: Keys of which one must be there, unless the answer has no key but its entries: a record with a field of
            the same name is no answer. An answer with an id of its own must have the first of them.
        id: Key of the entry's id, if it has one.
        ids: Key of a list of ids beside the list of entries.
        by_type: Whether ``entries`` is an object with one list per code.
        by_id: Whether ``entries`` may be an object with one entry per id.
        index: Key of the entry's position in the request.
    """

    source: str
    entries: str | None
    vector: str
    marks: tuple[str, ...] = ()
    id: str | None = None
    ids: str | None = None
    by_type: bool = False
    by_id: bool = False
    index: str | None = None


ANSWERS = (
    Answer("OpenAI, Voyage, Jina, Mistral", "data", "embedding", ("object", "model", "usage"), index="index"),
    Answer("Pinecone inference", "data", "values", ("vector_type", "model", "usage")),
    Answer("Cohere v1, Nomic, Ollama", "embeddings", "", ("texts", "model", "meta", "response_type", "usage")),
    Answer("Cohere by type", "embeddings", "", ("texts", "meta", "response_type"), by_type=True),
    Answer("Chroma get", "embeddings", "", ("ids",), ids="ids"),
    Answer("Amazon Nova", "embeddings", "embedding", ("request_id",)),
    Answer("Amazon Titan by type", None, "embeddingsByType.float"),
    Answer("watsonx", "results", "embedding", ("model_id", "created_at", "input_token_count")),
    Answer("Cloudflare", "result.data", "", ("success", "errors", "messages")),
    Answer("TensorFlow Serving, SageMaker", "predictions", "", ("model_version_name",)),
    Answer("Gemini", None, "embedding.values"),
    Answer("Gemini batch", "embeddings", "values", ("metadata", "usageMetadata", "sdk_http_response")),
    Answer("Gemini in Python", "embedding", ""),
    Answer("Vertex", "predictions", "embeddings.values", ("metadata", "status", "deployedModelId")),
    Answer("Vertex multimodal", "predictions", "textEmbedding", ("metadata", "status", "deployedModelId")),
    Answer("Vertex multimodal", "predictions", "imageEmbedding", ("metadata", "status", "deployedModelId")),
    Answer("Pinecone fetch", "vectors", "values", ("namespace", "usage"), id="id", by_id=True),
    Answer("Pinecone query", "matches", "values", ("namespace", "usage", "results"), id="id"),
    Answer("Qdrant scroll", "result.points", "vector", ("status", "time"), id="id"),
    Answer("Qdrant retrieve", "result", "vector", ("status", "time"), id="id"),
    Answer("Qdrant client", "points", "vector", ("next_page_offset",), id="id"),
    Answer("Weaviate", "objects", "vector", ("totalResults", "deprecations"), id="id"),
    Answer("Weaviate", "objects", "vectors", ("totalResults", "deprecations"), id="id"),
)
#: Objects around an answer: the path of the answer, and the key of the request's id. They are those of the batch APIs
#: of OpenAI, Azure and Mistral, of Gemini, of Amazon Bedrock, and the documents of Elasticsearch.
ENVELOPES = (
    ("response.body", "custom_id"), ("response", "key"), ("modelOutput", "recordId"), ("_source", "_id"),
)  # fmt: skip


def find_vectors(value: object, column: str | None, where: str) -> Iterator[Item]:
    """Yield the vectors in one JSON value: a line of a JSON-lines file, or the content of a JSON file.

    Args:
        value: A vector, a list of vectors (text-embeddings-inference), a record, or an answer of an API.
        column: Field that holds the vector, or the name of one of several vectors.
        where: File and line, for error messages.

    Raises:
        DataError: If it is not clear which content is the vectors, or the answer is incomplete or an error.
    """
    if isinstance(value, list):
        yield Item(value, None, None, where)
        return
    if not isinstance(value, dict):
        raise DataError(f"{where}: neither a vector nor an object that holds one.")
    if column is not None and column in value:
        yield _record(value, column, column, where)
        return
    known = [answer for answer in ANSWERS if _matches(answer, value)]
    if len(known) > 1 and column is not None:
        known = [answer for answer in known if column == answer.vector.rpartition(".")[2]]
    fields = [name for name in VECTOR_NAMES if _holds(value.get(name), column)]
    envelopes = [(path, key) for path, key in ENVELOPES if isinstance(_at(value, path), dict) and key in value]
    if len(fields) == 1 and not known and not envelopes:
        yield _record(value, fields[0], column, where)
    elif len(known) == 1 and not fields and not envelopes:
        yield from _entries(known[0], value, column, where)
    elif envelopes and not known and not fields:
        yield from _enveloped(value, *envelopes[0], column, where)
    elif known or fields:
        raise DataError(_unclear(value, [*fields, *(answer.source for answer in known)], column, where))
    else:
        yield _without_vector(value, column, where)


def _record(value: Mapping[str, Any], name: str, column: str | None, where: str) -> Item:
    vector, codes = _named(value[name], column if column != name else None, f"{where}, {name}")
    rest = {key: found for key, found in value.items() if key != name}
    if rest.get("object") == "embedding":
        rest.pop("index", None)  # an item of OpenAI's `data`: the position in its request is no id
    try:
        return Item(vector, _record_id(rest, where), _model(value), where, codes)
    except DataError as error:
        return Item(None, None, None, where, fault=str(error))


def _without_vector(value: Mapping[str, Any], column: str | None, where: str) -> Item:
    """Return the item of an object that holds no vector: others of its file may."""
    keys = [key for _, key in ENVELOPES if key in value and value.get("error")]
    try:
        key = id_text(value[keys[0]], where) if keys else _record_id(value, where)
    except DataError:
        key = None
    return Item(None, key, None, where, fault=_unclear(value, [], column, where))


def _record_id(value: Mapping[str, Any], where: str) -> str | None:
    name = _id_name(tuple(value))
    return None if name is None or value[name] is None else id_text(value[name], f"{where}, {name}")


def _enveloped(value: Mapping[str, Any], path: str, key: str, column: str | None, where: str) -> Iterator[Item]:
    """Yield the vectors of one line of a batch's output; ids are the request's, with `/0`, `/1` for several inputs."""
    request = id_text(value[key], f"{where}, {key}")
    status = _at(value, "response.status_code")
    if value.get("error") or status not in (None, 200):
        failure = f"{where}: request {value[key]} failed: {one_line(Exception(value.get('error') or status))}"
        yield Item(None, request, None, where, fault=failure)
        return
    items = list(find_vectors(_at(value, path), column, where))
    for number, item in enumerate(items):
        key_of_item = request if len(items) == 1 else f"{request}/{number}"
        yield replace(item, id=key_of_item, where=where)


def _entries(answer: Answer, value: Mapping[str, Any], column: str | None, where: str) -> Iterator[Item]:
    """Yield the vectors of an answer, in the order of its request."""
    if value.get("error") or value.get("status") not in (None, "", "ok", "success"):
        raise DataError(f"{where}: the API answered with an error: {one_line(Exception(value.get('error')))}")
    if answer.entries is None:
        yield Item(_at(value, answer.vector), _record_id(value, where), _model(value), where)
        return
    entries, codes = _at(value, answer.entries), None
    if answer.by_type:
        entries, codes = _one_of(entries, column, f"{where}, {answer.entries}")
        column = None
    ids = None if answer.ids is None else value[answer.ids]
    listed = list(entries.items()) if isinstance(entries, dict) else list(enumerate(entries))
    if answer.ids is not None and (not isinstance(ids, list) or len(ids) != len(listed)):
        count = len(ids) if isinstance(ids, list) else "no list of"
        raise DataError(f"{where}: {len(listed)} embeddings for {count} ids.")
    wrong = next((key for key, entry in listed if answer.vector and not isinstance(entry, dict)), None)
    if wrong is not None:
        raise DataError(f"{where}, {answer.entries}[{wrong}]: not an object, unlike the first.")
    order = range(len(listed)) if answer.index is None else _order(entries, answer.index, where)
    for place in order:
        key, entry = listed[place]
        place_name = f"{where}, {answer.entries}[{key}]"
        vector = _at(entry, answer.vector)
        vector, named_codes = _named(vector, column, place_name)
        found = None
        if answer.id is not None:
            found = entry.get(answer.id, key if isinstance(entries, dict) else None)
        text = None if found is None else id_text(found, place_name)
        if ids is not None:
            text = id_text(ids[place], place_name)
        yield Item(vector, text, _model(value), place_name, codes or named_codes)


def _order(entries: list[dict[str, Any]], index: str, where: str) -> Iterable[int]:
    """Return the places of entries in the order of their request; every position must be there once, or none."""
    given = [entry.get(index) for entry in entries]
    if all(place is None for place in given):
        return range(len(entries))
    places = [place for place in given if type(place) is int]
    if sorted(places) != list(range(len(given))):
        missing = sorted(set(range(len(given))) - set(places))
        seen = f"without {some(missing)}" if missing else f"not from 0: {some(given)}"
        raise DataError(
            f"{where}: {len(given)} entries whose `{index}` should be 0 to {len(given) - 1}, {seen}; "
            "an answer is incomplete, or several were put together."
        )
    return sorted(range(len(given)), key=places.__getitem__)


def _named(value: object, column: str | None, where: str) -> tuple[Any, str | None]:
    """Return a vector; of several named ones (Qdrant, Cohere by type) the only one, or that of the column's name."""
    if not isinstance(value, dict):
        return value, None
    if {"indices", "values"} <= set(value):
        raise DataError(f"{where}: a sparse vector is not read.")
    return _one_of(value, column, where)


def _one_of(value: Mapping[str, Any], column: str | None, where: str) -> tuple[Any, str | None]:
    """Return the only value by name, or the named one, and the codes if its name is one of codes."""
    named = {name: found for name, found in value.items() if found is not None}
    name = next(iter(named)) if column is None and len(named) == 1 else column
    if name not in named:
        raise DataError(f"{where}: holds {some(list(named), 6) or 'nothing'}; name one with `column` (--column).")
    codes = name if name in CODES else "float32" if name in FLOAT_NAMES else None
    return named[name], codes


def _matches(answer: Answer, value: Mapping[str, Any]) -> bool:
    """Return whether an object has the form of an answer, judged by its first entry."""
    if answer.entries is None:
        return "embedding" not in value.keys() - {answer.vector.partition(".")[0]} and _may_be_vector(
            _at(value, answer.vector)
        )
    entries: Any = _at(value, answer.entries)
    if not isinstance(entries, list | dict) or not entries or (answer.ids is not None and answer.ids not in value):
        return False
    is_marked = len(value) == 1 or any(key in value for key in answer.marks)
    has_own_id = _id_name(tuple(value)) not in (None, answer.ids)
    if not is_marked or (has_own_id and answer.marks[0] not in value):
        return False
    if answer.by_type:
        if not isinstance(entries, dict) or not set(entries) <= {*CODES, *FLOAT_NAMES}:
            return False
        return all(found is None or isinstance(found, list) for found in entries.values())
    if isinstance(entries, dict) and not answer.by_id:
        return False
    first = entries[next(iter(entries)) if isinstance(entries, dict) else 0]
    vector = _at(first, answer.vector)
    return _may_be_vector(vector) or ((answer.id or answer.index) is not None and _are_named(vector))


def _holds(value: object, column: str | None) -> bool:
    """Return whether a field of a record holds the vector: the only one, or one of the column's name."""
    return _are_named(value) and (column is None or column in value) or column is None and _may_be_vector(value)


def _are_named(value: object) -> TypeGuard[dict[str, object]]:
    """Return whether a value is an object of vectors by name, as Qdrant gives several; `values` is no such name."""
    return (
        isinstance(value, dict) and bool(value) and "values" not in value and all(map(_may_be_vector, value.values()))
    )


def _may_be_vector(value: object) -> bool:
    """Return whether a value could be one vector: a list of numbers, or a text."""
    is_list = isinstance(value, list) and bool(value) and not isinstance(value[0], list | dict)
    return is_list or (isinstance(value, str) and bool(value))


def _at(value: object, path: str) -> Any:
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _model(value: Mapping[str, Any]) -> str | None:
    model = value.get("model")
    return model if isinstance(model, str) and model else None


@lru_cache(maxsize=1024)
def _id_name(names: tuple[str, ...]) -> str | None:
    return find_id(names)


def _unclear(value: Mapping[str, Any], found: list[str], column: str | None, where: str) -> str:
    if value.get("error"):
        return f"{where}: the API answered with an error: {one_line(Exception(value['error']))}"
    if column is None and not found and any(name in value and not value[name] for name in VECTOR_NAMES):
        return f"{where}: holds no vector."
    if column is not None:
        return f"{where}: holds no `{column}`; it has {some(list(value), 8) or 'nothing'}."
    if found:
        return f"{where}: could be {' or '.join(found)}; name the field of the vectors with `column` (--column)."
    if "embedding" in value:
        return f"{where}: its `embedding` is no vector."
    fields = some(list(value), 8) or "nothing"
    return (
        f"{where}: holds no `embedding`, and is no known answer of an API; it has {fields}. Name the field of the "
        "vectors with `column` (--column)."
    )
