"""Finds revisions of the user's own repository. It is only read: no index, no ref, no lock of it is touched, and nothing is fetched."""

import os
import re
import subprocess
from pathlib import Path

import msgspec

from agent_server.changes.git import GitMissing, Spawn
from agent_server.errors import AgentServerError, NotFound

REVISION_SECONDS = 10.0
"""How long git may look for a revision; one that searches the messages of a long history takes longer."""

ANSWER_BYTES = 16 * 1024
"""What git says: an object id and a path."""

OBJECT_ID = re.compile(r"[0-9a-f]{40}")


class Revision(msgspec.Struct, frozen=True):
    """A tree of another repository, and the folder of its objects."""

    tree: str
    objects: Path


def find(workspace: Path, name: str, spawn: Spawn = subprocess.Popen) -> Revision:
    """Gives the tree of a revision as git names them (`HEAD~2`, `main`, a commit's id). It blocks.

    Errors: NotFound when there is no such revision, or no repository in the workspace; GitMissing.
    """
    repository = workspace / ".git"
    if not os.path.lexists(repository):
        raise NotFound(f"There is no task or checkpoint {name!r}, and no git repository in the workspace that could have a revision of it.")
    # --end-of-options: a name that begins with a dash is still no option. ^{tree} refuses what is no commit, tag or tree.
    wanted = ["rev-parse", "--git-path", "objects", "--verify", "--end-of-options", f"{name}^{{tree}}"]
    answer = _ask(repository, workspace, wanted, spawn)
    if len(answer) != 2:  # it says no, or takes the name for several: `a..b`
        raise NotFound(f"There is no task, checkpoint or git revision {name!r} to compare with; GET /tasks lists the tasks.")
    objects, tree = answer
    if not OBJECT_ID.fullmatch(tree):
        raise NotFound(f"The git revision {name!r} has SHA-256 objects, which cannot be compared; name a task or a checkpoint.")
    return Revision(tree, workspace / objects)


def _ask(repository: Path, workspace: Path, arguments: list[str], spawn: Spawn) -> list[str]:
    """Runs git on the user's repository, and gives the lines of its answer, none when it says no."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/",
        "LC_ALL": "C",
        # Named outright, so that git does not look in the folders above, nor mind whose it is.
        "GIT_DIR": str(repository),
        "GIT_WORK_TREE": str(workspace),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        # A partial clone would fetch what it lacks, by programs that its configuration names.
        "GIT_ALLOW_PROTOCOL": "",
        "GIT_NO_LAZY_FETCH": "1",
    }
    try:
        process = spawn(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=workspace,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise GitMissing("git cannot be started, so revisions cannot be found: install git 2.32 or later on the PATH") from error
    with process:
        try:
            answer, _ = process.communicate(timeout=REVISION_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AgentServerError("git did not find the revision in time; name it by its commit id.") from None
    return os.fsdecode(answer[:ANSWER_BYTES]).splitlines() if process.returncode == 0 else []
