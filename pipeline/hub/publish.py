"""One commit on the Hub: the files of a checkpoint, its card, and nothing that was there before.

The token comes from where huggingface_hub looks for it (HF_TOKEN, `hf auth login`) unless one is
handed over; it is never written anywhere.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from pipeline.hub.upload import Upload, check_no_token
from pipeline.model.trust import is_checkpoint_file
from pipeline.runtime import redacted

# The HTTP library's own error, whichever library that is, and OSError.
HTTP_ERRORS = HfHubHTTPError.__bases__
REASONS = {
    401: "the Hub does not know your token; run `hf auth login` or set HF_TOKEN",
    403: "your token may not write there; take one with write access, or a name of your own",
    404: "there is no such repository or revision, or your token may not see it",
    409: "somebody else is writing there at the same moment; try again",
    413: "a file is larger than the Hub takes",
    429: "the Hub has had too many requests from you; try again in some minutes",
}


class PublishError(OSError):
    """Nothing was published, and why, in one line."""


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
    """The address of the commit that makes `repo_id` hold these files and this card.

    `card` is handed the whole name of the repository, which is made where it is missing, as is a
    branch. Checkpoint files that are there and no longer among these are taken away in the same
    commit; what else is there stays.

    Raises ValueError before the Hub is asked anything where card, title or names hold a token.
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
    except (*HTTP_ERRORS, RuntimeError) as error:  # a RuntimeError wraps a failed large file
        raise PublishError(f"{repo_id} was not published: {reason(error)}") from error
    return commit.commit_url


def reason(error: BaseException) -> str:
    """Why the Hub did not take something, in one line without a token."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            status = response.status_code
            if status >= 500:
                return f"the Hub has a fault of its own ({status}); try again later"
            return f"{REASONS.get(status, 'the Hub refuses it')} ({status})"
        error, cause = cause, cause.__cause__ or cause.__context__
    said = " ".join(str(error).split())
    return redacted(f"the Hub cannot be reached ({said or type(error).__name__})")


def publish_command(
    folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None
) -> str:
    """The command that publishes a checkpoint.

    >>> publish_command(Path("runs/my run"), "user/name", private=True)
    "python -m stages.publish --checkpoint 'runs/my run' --repo_id user/name --private true"
    """
    arguments = ["--checkpoint", str(folder), "--repo_id", repo_id]
    arguments += ["--private", "true"] if private else []
    arguments += ["--revision", revision] if revision else []
    return f"python -m stages.publish {shlex.join(arguments)}"
