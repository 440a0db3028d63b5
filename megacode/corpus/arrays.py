"""Arrays on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from megacode.base.files import naming


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as .npy.

    Raises:
        OSError: with the name of the file, if the disk is full.
    """
    with naming(path), path.open("wb") as file:
        # To real files numpy writes past Python, and its error then has no code that tells of a full disk.
        np.lib.format.write_array(SimpleNamespace(write=file.write), array)
