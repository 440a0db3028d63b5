"""What runs on two ranks that see two versions of one object: equal bytes, written again between their first looks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig

from megacode.base.errors import MegacodeError
from megacode.config.config_file import load_config
from megacode.data.windows import open_streams
from megacode.mcore import groups
from megacode.train import main
from tests.limits import HANG


def start(config: str, overrides: list[str], bucket: str, key: str, file: str, marker: str) -> str:
    """Train on this rank, and return how it ended."""
    looked = Path(marker)
    if os.environ["RANK"] == "1":
        # This rank sees the first version, and has all that a start reads of it in its cache.
        open_streams(load_config(Path(config), overrides))
        looked.touch()
    else:
        deadline = time.monotonic() + HANG
        while not looked.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        # An upload in parts gives the same bytes another ETag.
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        client.upload_file(file, bucket, key, Config=TransferConfig(multipart_threshold=1))
    try:
        return main.run(Path(config), overrides)
    except MegacodeError as error:
        return str(error)
    finally:
        groups.stop()
