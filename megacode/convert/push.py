"""Push a verified export to the Hugging Face hub, or to any server with its protocol (`HF_ENDPOINT`).

A new repository is created private: making a model public is its owner's decision, made on the hub. Everything that can
be checked in advance is checked before the export begins: the id, the token, and whether the hub answers.
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
    """Check that a push is possible, before the export begins.

    Args:
        hub_id: such as `group/model`.

    Raises:
        ConfigError: the id is invalid, the token is missing or refused, or the hub cannot be reached.
    """
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        message = f"{hub_id!r} is not a valid repository id: {error}"
        raise ConfigError(message, _FLAG, "use an id such as group/model") from None
    if constants.is_offline_mode():
        raise ConfigError("huggingface_hub is offline", _FLAG, "unset HF_HUB_OFFLINE, or push from a login node")
    if get_token() is None:
        raise ConfigError("there is no token for the hub", _FLAG, "log in with `hf auth login`, or set HF_TOKEN")
    try:
        # The cheapest request that tests both the network and the token.
        HfApi().whoami()
    except (HTTPError, OSError) as error:
        raise ConfigError(_reason(error), _FLAG, _fix(error)) from error


def push(report: Report, export: Path, hub_id: str) -> str:
    """Push an export, and return its address.

    Args:
        report: the result of its verification.
        export: its directory.
        hub_id: the repository; created, private, if it does not exist.

    Raises:
        CheckpointError: it was not verified, or the hub did not accept it; the local export stays.
    """
    if not report.verified:
        raise CheckpointError(
            "it was not verified, and only verified exports are pushed", str(export), "export it again"
        )
    api = HfApi()
    try:
        repository = api.create_repo(hub_id, repo_type="model", private=True, exist_ok=True)
        # One commit for all files: readers never see half an export.
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=export, commit_message=f"{report.source}, by megacode"
        )
    except (HTTPError, OSError) as error:
        fix = f"the local export is complete; once this is fixed, run: hf upload {hub_id} {export}"
        raise CheckpointError(f"it could not be pushed to {hub_id}: {_reason(error)}", str(export), fix) from error
    log.info("pushed to %s", repository.url)
    return str(repository.url)


def _reason(error: Exception) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"the hub at {constants.ENDPOINT} cannot be reached ({error})"
    status = error.response.status_code
    if status in (401, 403):
        return f"the hub at {constants.ENDPOINT} refuses the token ({status})"
    return f"the hub at {constants.ENDPOINT} answered {status}: {str(error).strip()}"


def _fix(error: Exception) -> str:
    refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
    return (
        "create a token with write access, and log in with `hf auth login`"
        if refused
        else "check the network and HF_ENDPOINT"
    )
