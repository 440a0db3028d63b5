"""Settings of the kind `machine`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megacode.config.quantity import Count, Frozen


class MachineSettings(Frozen):
    """Settings of the kind `machine`: files of this machine.

    Attributes:
        files: what to collect; absent: what the source's name says.
        bytes: of UTF-8 text to collect, before duplicates are dropped; absent: as much as the demo needs.
    """

    files: Literal["code", "text", "markup"] | None = None
    bytes: Count | None = Field(default=None, ge=1)
