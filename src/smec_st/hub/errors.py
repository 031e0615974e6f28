"""Turn errors of the Hub client into one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smec_st.data import DataError
from smec_st.system.errors import one_line

LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass a token"


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Raise errors of the Hub client as :class:`~smec_st.data.DataError` within this context; others pass."""
    try:
        yield
    except Exception as error:
        message = explain(error, repo_id, revision)
        if message is None:
            raise
        raise DataError(message) from error


def explain(error: BaseException, repo_id: str, revision: str | None = None) -> str | None:
    """Explain an error of the Hub client, or its cause in an upload thread, in one line; None for any other error."""
    from huggingface_hub import constants, errors

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return explain(error.__cause__, repo_id, revision)
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is not a repository id: {one_line(error)}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"cannot look up {repo_id} on the Hub: HF_HUB_OFFLINE is set."
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: ask for access at {page}, then {LOG_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'!r}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no model {repo_id} at {constants.ENDPOINT}, or it is private; if so, {LOG_IN}."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{repo_id} is not in the local cache and the Hub could not be reached: {one_line(error)}"
    if isinstance(error, errors.HfHubHTTPError):
        return _by_status(error.response.status_code, error, repo_id)
    transport = errors.HfHubHTTPError.__mro__[1]  # HTTPError of requests or httpx, whichever the client was built on
    if isinstance(error, transport):
        return f"cannot reach {constants.ENDPOINT}: {one_line(error) or type(error).__name__}"
    return None


def _by_status(status: int, error: BaseException, repo_id: str) -> str:
    owner = repo_id.split("/")[0]
    known = {
        401: f"the Hub does not accept this token; {LOG_IN}.",
        403: f"this token may not write to {owner}: it needs the write permission for {repo_id}.",
        409: f"{repo_id}: a repository, branch or tag to be created exists already.",
        412: f"{repo_id} was changed by someone else in the meantime; check it and push again.",
    }
    return known.get(status) or f"the Hub refused ({status}): {one_line(error)}"
