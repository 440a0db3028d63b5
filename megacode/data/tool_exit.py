"""Exit codes and messages of the offline tools; nothing is left half-written."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from megacode.base.errors import EXIT_FAILURE, MegacodeError
from megacode.base.user_paths import explained

EXIT_INTERRUPTED = 130


def run_tool(work: Callable[[], object]) -> int:
    """Run a tool's work; a termination signal unwinds it like Ctrl-C, so that temporary files are removed.

    Returns:
        0, the exit code of a user's mistake, 130 if interrupted, or 1 for a failure of the machine.
    """
    # By default SIGTERM kills at once, and SLURM sends it at a job's time limit.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        work()
    except MegacodeError as error:
        sys.stderr.write(f"{error.render()}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; nothing was written\n")
        return EXIT_INTERRUPTED
    except OSError as error:
        refusal = explained(error)
        sys.stderr.write(f"{refusal.render() if refusal is not None else f'Error: {error}'}\n")
        return refusal.exit_code if refusal is not None else EXIT_FAILURE
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
