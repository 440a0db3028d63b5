"""A proven export on the Hugging Face hub, or on any server that speaks its protocol (`HF_ENDPOINT`).

A repository that is new is made private: to publish a model is its owner's decision, made on the hub. All that can be
known beforehand is asked before the export begins: the id, the token, and whether the hub answers.
"""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from megacode.base.errors import CheckpointError, ConfigError
from megacode.convert.verify import Report

log = logging.getLogger(__name__)

_FLAG = "--push-to"


def check(hub_id: str) -> None:
    """Check that something could be pushed, before the work is done.

    Args:
        hub_id: such as `group/model`.

    Raises:
        ConfigError: the id is none, there is no token, or it is refused, or the hub cannot be reached.
    """
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        what = f"{hub_id!r} is not a valid id on the hub: {error}"
        raise ConfigError(what, _FLAG, "give one such as group/model") from None
    if constants.is_offline_mode():
        raise ConfigError("huggingface_hub is offline", _FLAG, "unset HF_HUB_OFFLINE, or push from a login node")
    if get_token() is None:
        raise ConfigError("there is no token of the hub", _FLAG, "log in with `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except (HTTPError, OSError) as error:
        raise ConfigError(_said(error), _FLAG, _fix(error)) from error


def push(report: Report, export: Path, hub_id: str) -> str:
    """Push an export, and return the address of what it has become.

    Args:
        report: its proof.
        export: its directory.
        hub_id: the repository; one that is not there is made, private.

    Raises:
        CheckpointError: it was not proven, or the hub did not take it; the export stays where it is.
    """
    if not report.verified:
        raise CheckpointError("it was not proven, and only proven exports are pushed", str(export), "export it again")
    api = HfApi()
    try:
        there = api.create_repo(hub_id, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(repo_id=there.repo_id, folder_path=export, commit_message=f"{report.source}, by megacode")
    except (HTTPError, OSError) as error:
        fix = f"the export is whole; once that is fixed: hf upload {hub_id} {export}"
        raise CheckpointError(f"it could not be pushed to {hub_id}: {_said(error)}", str(export), fix) from error
    log.info("pushed to %s", there.url)
    return str(there.url)


def _said(error: Exception) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"the hub at {constants.ENDPOINT} cannot be reached ({error})"
    status = error.response.status_code
    if status in (401, 403):
        return f"the hub at {constants.ENDPOINT} refuses the token ({status})"
    return f"the hub at {constants.ENDPOINT} answered {status}: {str(error).strip()}"


def _fix(error: Exception) -> str:
    refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
    return (
        "make a token with write access, and log in with `hf auth login`"
        if refused
        else "check the network and HF_ENDPOINT"
    )
