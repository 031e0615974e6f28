"""Publish a compressor on the Hugging Face Hub: folded into its backbone, or by itself.

The model is written on this machine first. Each revision is then one commit, and the main branch moves last, so that
readers see the old model or the new one. What a failed push created is taken back, and the error says what remains.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st.data import DataError
from smec_st.data.errors import one_line
from smec_st.hub.card import REPO_ID
from smec_st.hub.errors import LOG_IN, explain, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from sentence_transformers import SentenceTransformer

    from smec_st.compressor import Compressor
    from smec_st.hub.evidence import Evidence

PER_SIZE = ("branches", "tags")
# What an earlier push may have left that would change how the model is read.
_OURS = re.compile(r"(\d+_\w+|compressor|onnx)/.*|(model|adapter|compressor)[^/]*\.(safetensors|json)|modules\.json")
_ALWAYS_THERE = {".gitattributes"}


def push(
    compressor: Compressor,
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
        repo_id = _whole_id(api, repo_id)
        known = _look(api, repo_id, private, overwrite)

    backbone = load_model(model) if isinstance(model, str) else model
    base = model if isinstance(model, str) else None

    def write(folder: Path, size: int | None) -> Path:
        write_repository(compressor, folder, repo_id, backbone, size, evidence=evidence, license=license, base=base)
        return folder

    with tempfile.TemporaryDirectory(prefix="smec-st-push-") as work:
        whole = write(Path(work, "main"), dim)
        publication = _Publication(api, repo_id, overwrite, message or f"Add {compressor!r}")
        with publication.taken_back_on_error():
            if not known:
                publication.create(private)
            for size in compressor.dims if per_size else ():
                folder = write(Path(work, f"dim-{size}"), size)
                publication.put(folder, folder.name, as_tag=per_size == "tags")
                shutil.rmtree(folder)  # it holds the backbone once more
            return publication.put(whole, revision or "main")


def write_repository(
    compressor: Compressor,
    folder: Path,
    repo_id: str,
    model: SentenceTransformer | None,
    dim: int | None = None,
    *,
    evidence: Evidence | None = None,
    license: str | None = None,
    base: str | None = None,
) -> None:
    """The files of one revision: the exported model, or the compressor alone with a card.

    Args:
        compressor: What to publish.
        folder: New folder.
        repo_id: Its name on the Hub, for the card.
        model: The backbone; None for a head-only repository.
        dim: The one size to hold; all by default.
        evidence: Measurements for the card.
        license: Short name of the licence, for the card.
        base: The backbone's id, where it is known better than the model does.
    """
    from smec_st.data.embedding import backbone_record
    from smec_st.hub.card import write_card

    if model is not None:
        compressor.export(model, folder, dim)
        base = base or backbone_record(model)["model"]
        _check_reference(folder)
    else:
        only_this(compressor, dim).save(folder)
    write_card(
        compressor, folder, repo_id, dim, head_only=model is None, evidence=evidence, license=license, base=base
    )


def _check_reference(folder: Path) -> None:
    """An adapter that refers to a folder on this machine would be of no use to others."""
    path = folder / "adapter_config.json"
    if path.is_file():
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not REPO_ID.fullmatch(str(base)) or Path(str(base)).exists():
            raise DataError(
                f"the adapter refers to {base!r}, which is not on the Hub; merge it, or name the base's id."
            )


def only_this(compressor: Compressor, dim: int | None) -> Compressor:
    """The compressor with one size alone; itself for None."""
    if dim is None:
        return compressor
    try:
        compressor.map_for(dim)
    except ValueError as error:
        raise DataError(str(error)) from error
    return type(compressor)([(compressor.map_for(dim), (dim,))], compressor.info)


def _whole_id(api: HfApi, repo_id: str) -> str:
    return repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"


def _look(api: HfApi, repo_id: str, private: bool | None, overwrite: bool) -> bool:
    """Whether the repository exists; refuse what would surprise its owner, before any work is done."""
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
    """What has been done on the Hub so far, so that it can be taken back."""

    api: HfApi
    repo_id: str
    overwrite: bool
    message: str
    has_created: bool = False
    new_branches: list[str] = field(default_factory=list)
    new_tags: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def create(self, private: bool | None) -> None:
        self.api.create_repo(self.repo_id, private=private)
        self.has_created = True

    def put(self, folder: Path, revision: str, as_tag: bool = False) -> str:
        """Make a branch, or a tag, hold the folder's files; the commit's address."""
        branch = f"{revision}-draft" if as_tag else revision
        is_new = branch != "main" and self._branch(branch)
        address, commit = self._commit(folder, branch)
        if as_tag:
            self._tag(revision, commit)
            self.api.delete_branch(self.repo_id, branch=branch)
            if is_new:
                self.new_branches.remove(branch)
        elif not is_new:
            self.moved.append(revision)
        return address

    def _branch(self, name: str) -> bool:
        refs = self.api.list_repo_refs(self.repo_id)
        if name in {branch.name for branch in refs.branches}:
            return False
        self.api.create_branch(self.repo_id, branch=name)
        self.new_branches.append(name)
        return True

    def _tag(self, name: str, commit: str) -> None:
        if self.overwrite and name in {tag.name for tag in self.api.list_repo_refs(self.repo_id).tags}:
            self.api.delete_tag(self.repo_id, tag=name)
            self.moved.append(name)
        else:
            self.new_tags.append(name)
        self.api.create_tag(self.repo_id, tag=name, revision=commit)

    def _commit(self, folder: Path, branch: str) -> tuple[str, str]:
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
    def taken_back_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            remains = self._take_back()
            if not isinstance(error, Exception):
                raise
            cause = error.__cause__ or error
            told = explain(error, self.repo_id) or f"{type(cause).__name__}: {one_line(cause)}"
            raise DataError(f"push to {self.repo_id} failed: {told.rstrip('.')}. {remains}") from error

    def _take_back(self) -> str:
        """Remove what is new; say in a sentence what is there now."""
        left: list[str] = []
        try:
            if self.has_created:
                self.api.delete_repo(self.repo_id, missing_ok=True)
                return "The repository made for it was removed again."
            left += [*self.new_branches, *self.new_tags]
            for branch in self.new_branches:
                self.api.delete_branch(self.repo_id, branch=branch)
                left.remove(branch)
            there = {tag.name for tag in self.api.list_repo_refs(self.repo_id).tags}
            for tag in self.new_tags:
                if tag in there:
                    self.api.delete_tag(self.repo_id, tag=tag)
                left.remove(tag)
        except Exception:
            kind = "the repository" if self.has_created else ", ".join(left)
            return f"What was made for it could not be removed and is incomplete; delete on the Hub: {kind}."
        if self.moved:
            return f"Only {', '.join(self.moved)} hold the new files; push again."
        return "Nothing on the Hub has changed."
