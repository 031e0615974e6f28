"""Publish a compressor on the Hugging Face Hub: as a model with its backbone, or alone.

All files are written locally first. Each revision is then one commit, and the main branch moves last, so that readers
see either the old model or the new one. A failed push removes what it created, and its error says what remains.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st.data import DataError
from smec_st.data.space import check_backbone
from smec_st.hub.card import REPO_ID, write_card
from smec_st.hub.errors import LOG_IN, explain, hub_errors
from smec_st.quantization.interface import CompressorLike
from smec_st.system.errors import one_line
from smec_st.system.files import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from sentence_transformers import SentenceTransformer

    from smec_st.hub.evidence import Evidence

PER_SIZE = ("branches", "tags")
# Files of an earlier push that would change how the model is read; stale ones are deleted.
_OURS = re.compile(r"(\d+_\w+|compressor|onnx)/.*|(model|adapter|compressor)[^/]*\.(safetensors|json)|modules\.json")
_ALWAYS_THERE = {".gitattributes"}


def push(
    compressor: CompressorLike,
    repo_id: str,
    model: SentenceTransformer | str | None = None,
    *,
    dim: int | None = None,
    private: bool | None = None,
    token: str | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    per_size: str | None = None,
    message: str | None = None,
    evidence: Evidence | None = None,
    license: str | None = None,
) -> str:
    """See :meth:`smec_st.compressor.Compressor.push_to_hub`."""
    from huggingface_hub import HfApi, get_token

    from smec_st.data.embedding import load_model

    if per_size not in (None, *PER_SIZE):
        raise DataError(f"`per_size` must be {' or '.join(PER_SIZE)}, got {per_size!r}.")
    if token is None and get_token() is None:
        raise DataError(f"pushing to {repo_id} needs a token: {LOG_IN}.")
    api = HfApi(token=token)
    with hub_errors(repo_id, revision):
        repo_id = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        exists = _check_repository(api, repo_id, private, overwrite)

    backbone = load_model(model) if isinstance(model, str) else model
    base = model if isinstance(model, str) else None

    def write(folder: Path, size: int | None) -> Path:
        write_repository(compressor, folder, repo_id, backbone, size, evidence=evidence, license=license, base=base)
        return folder

    with tempfile.TemporaryDirectory(prefix="smec-st-push-") as work:
        main = write(Path(work, "main"), dim)
        publication = _Publication(api, repo_id, overwrite, message or f"Add {compressor!r}")
        with publication.undone_on_error():
            if not exists:
                publication.create(private)
            for size in compressor.dims if per_size else ():
                folder = write(Path(work, f"dim-{size}"), size)
                publication.put(folder, folder.name, as_tag=per_size == "tags")
                shutil.rmtree(folder)  # it contains a copy of the backbone
            return publication.put(main, revision or "main")


def write_repository(
    compressor: CompressorLike,
    folder: Path,
    repo_id: str,
    model: SentenceTransformer | None,
    dim: int | None = None,
    *,
    evidence: Evidence | None = None,
    license: str | None = None,
    base: str | None = None,
) -> None:
    """Write the files of one revision into a new folder: the exported model, or the compressor alone, with a card.

    The arguments are those of :func:`push`; ``base`` is used instead of the name that the model records.
    """
    from smec_st.data.embedding import backbone_record
    from smec_st.hub.export import export

    if model is not None:
        record = backbone_record(model)
        check_backbone(compressor.info.get("backbone") or {}, record, "the model")
        export(compressor, model, folder, dim)
        base = base or record["model"]
        _check_reference(folder)
    else:
        only_this(compressor, dim).save(folder)
    write_card(
        compressor, folder, repo_id, dim, head_only=model is None, evidence=evidence, license=license, base=base
    )


def _check_reference(folder: Path) -> None:
    """Refuse an adapter whose base model is a folder of this machine, because others could not load it."""
    path = folder / "adapter_config.json"
    base = read_json(path).get("base_model_name_or_path")
    if path.is_file() and (not REPO_ID.fullmatch(str(base)) or Path(str(base)).exists()):
        raise DataError(f"the adapter refers to {base!r}, which is not on the Hub; merge it, or name the base's id.")


def only_this(compressor: CompressorLike, dim: int | None) -> CompressorLike:
    """Return a compressor that has only the size ``dim``; the compressor itself for None."""
    return compressor if dim is None else type(compressor)([(compressor.map_for(dim), (dim,))], compressor.info)


def _check_repository(api: HfApi, repo_id: str, private: bool | None, overwrite: bool) -> bool:
    """Return whether the repository exists, after checking that its files and visibility are as wanted."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return False
    is_empty = {file.rfilename for file in info.siblings or ()} <= _ALWAYS_THERE
    if not (overwrite or is_empty):
        raise DataError(f"{repo_id} exists already; choose another name, or ask for it to be overwritten.")
    if private and not info.private:
        raise DataError(f"{repo_id} exists and is public; make it private on the Hub first, or choose another name.")
    return True


@dataclass
class _Publication:
    """One push to a repository; it records what it creates, so that this can be removed if the push fails."""

    api: HfApi
    repo_id: str
    overwrite: bool
    message: str
    has_created: bool = False
    new_branches: list[str] = field(default_factory=list)
    new_tags: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)

    def create(self, private: bool | None) -> None:
        self.api.create_repo(self.repo_id, private=private)
        self.has_created = True

    def put(self, folder: Path, revision: str, as_tag: bool = False) -> str:
        """Commit the folder's files to a branch, or under a tag, and return the address of the commit."""
        branch = f"{revision}-draft" if as_tag else revision
        is_new = branch != "main" and self._branch(branch)
        address, commit = self._commit(folder, branch)
        if as_tag:
            self._tag(revision, commit)
            self.api.delete_branch(self.repo_id, branch=branch)
            if is_new:
                self.new_branches.remove(branch)
        elif not is_new:
            self.updated.append(revision)
        return address

    def _branch(self, name: str) -> bool:
        """Create a branch unless it exists; return whether it was created."""
        refs = self.api.list_repo_refs(self.repo_id)
        if name in {branch.name for branch in refs.branches}:
            return False
        self.api.create_branch(self.repo_id, branch=name)
        self.new_branches.append(name)
        return True

    def _tag(self, name: str, commit: str) -> None:
        if self.overwrite and name in {tag.name for tag in self.api.list_repo_refs(self.repo_id).tags}:
            self.api.delete_tag(self.repo_id, tag=name)
            self.updated.append(name)
        else:
            self.new_tags.append(name)
        self.api.create_tag(self.repo_id, tag=name, revision=commit)

    def _commit(self, folder: Path, branch: str) -> tuple[str, str]:
        """Commit the folder's files to a branch; return the address and the id of the commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        info = self.api.model_info(self.repo_id, revision=branch)
        local = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        remote = {file.rfilename for file in info.siblings or ()}
        stale = sorted(path for path in remote - set(local) if _OURS.fullmatch(path))
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in local.items()]
        operations += [CommitOperationDelete(path) for path in stale]
        done = self.api.create_commit(
            self.repo_id, operations, commit_message=self.message, revision=branch, parent_commit=info.sha
        )
        return str(done.commit_url), str(done.oid)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Remove what the push created if an error is raised in this context, and say in the error what remains."""
        try:
            yield
        except BaseException as error:
            remains = self._undo()
            if not isinstance(error, Exception):
                raise
            cause = error.__cause__ or error
            message = explain(error, self.repo_id) or f"{type(cause).__name__}: {one_line(cause)}"
            raise DataError(f"push to {self.repo_id} failed: {message.rstrip('.')}. {remains}") from error

    def _undo(self) -> str:
        """Remove what the push created, and return a sentence that says what remains."""
        left: list[str] = []
        try:
            if self.has_created:
                self.api.delete_repo(self.repo_id, missing_ok=True)
                return "The new repository was removed again."
            left += [*self.new_branches, *self.new_tags]
            for branch in self.new_branches:
                self.api.delete_branch(self.repo_id, branch=branch)
                left.remove(branch)
            existing = {tag.name for tag in self.api.list_repo_refs(self.repo_id).tags}
            for tag in self.new_tags:
                if tag in existing:
                    self.api.delete_tag(self.repo_id, tag=tag)
                left.remove(tag)
        except Exception:
            kind = "the repository" if self.has_created else ", ".join(left)
            return f"What the push created is incomplete and could not be removed; delete it on the Hub: {kind}."
        if self.updated:
            return f"Only {', '.join(self.updated)} hold the new files; push again."
        return "Nothing on the Hub has changed."
