"""Publish a checkpoint and its model card as one commit on the Hub.

Unless a token is passed, huggingface_hub looks it up (HF_TOKEN, `hf auth login`). It is never
written to a file or printed.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from pipeline.hub.upload import Upload, check_no_token
from pipeline.model.trust import is_checkpoint_file
from pipeline.runtime import redacted

# The error class of whichever HTTP library huggingface_hub uses, and OSError.
# Also RuntimeError, which wraps a failed large file.
UPLOAD_ERRORS: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, RuntimeError)
REASONS = {
    401: "the Hub rejects your token; run `hf auth login` or set HF_TOKEN",
    403: "your token has no write access there; use one that has, or a repository of your own",
    404: "there is no such repository or revision, or your token has no access to it",
    409: "another commit is being written at the same time; try again",
    413: "a file is larger than the Hub accepts; save the weights in smaller shards",
    429: "you have sent too many requests; try again in some minutes",
}


class PublishError(OSError):
    """Nothing was published; the message is the reason in one line."""


def publish(
    plan: Upload,
    card: Callable[[str], str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Checkpoint and card",
) -> str:
    """Upload the files and the card in one commit; return the URL of the commit.

    Repository and branch are created if missing. Checkpoint files of the repository that are not in
    `plan` are deleted in the same commit; other files stay.

    Args:
        plan: the files, from `plan_upload`.
        card: returns the text of README.md for the full name of the repository.
        token: overrides the token that huggingface_hub finds.

    Raises:
        ValueError: before any request, if the card, the title or a name contains a token.
        PublishError: the Hub refused the upload or cannot be reached.
    """
    for name, text in (
        ("the title of the commit (--message)", message),
        ("the name of the repository", repo_id),
        ("the name of the branch (--revision)", revision or ""),
        ("the card", card(repo_id)),
        *(("the name of a file", name) for name in plan),
    ):
        check_no_token(name, text, token)
    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo, revision=revision)
        stale = [name for name in there if is_checkpoint_file(name) and name not in plan]
        readme = card(repo)
        check_no_token("the card", readme, token)
        additions = {"README.md": readme.encode(), **plan}
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, content) for name, content in additions.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message,
            revision=revision,
        )
    except UPLOAD_ERRORS as error:
        raise PublishError(f"{repo_id} was not published: {reason(error)}") from error
    return commit.commit_url


def reason(error: BaseException) -> str:
    """Why a request to the Hub failed, in one line that contains no token."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            status = response.status_code
            if status >= 500:
                return f"the Hub has an internal error ({status}); try again later"
            if status in REASONS:
                return f"{REASONS[status]} ({status})"
            said = " ".join(
                str(getattr(cause, "server_message", None) or "no reason given").split()
            )
            return redacted(f"the Hub refuses it ({status}): {said}")
        error, cause = cause, cause.__cause__ or cause.__context__
    said = " ".join(str(error).split())
    return redacted(f"the Hub cannot be reached ({said or type(error).__name__})")


def publish_command(
    folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None
) -> str:
    """The command line that publishes a checkpoint.

    >>> publish_command(Path("runs/my run"), "user/name", private=True)
    "python -m stages.publish --checkpoint 'runs/my run' --repo_id user/name --private true"
    """
    arguments = ["--checkpoint", str(folder), "--repo_id", repo_id]
    arguments += ["--private", "true"] if private else []
    arguments += ["--revision", revision] if revision else []
    return f"python -m stages.publish {shlex.join(arguments)}"
