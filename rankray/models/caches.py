"""Directories of this machine's own, below the user's home unless a variable names another, and what is said where one
of them cannot be written: as in a container whose user has no home, or on a full disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankray.config import ConfigError

_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def cache(variable: str, name: str) -> Path:
    """`$variable`, or `~/.cache/rankray/NAME`."""
    return Path(os.environ.get(variable) or f"~/.cache/rankray/{name}").expanduser().absolute()


@contextmanager
def writing(variable: str) -> Iterator[None]:
    """Within it, a place that takes no files is one line that names the variable to set.

    Raises:
        ConfigError: in place of such an OSError; any other passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CLOSED:
            raise
        place = error.filename or "its default directory"
        raise ConfigError(
            f"{place} cannot be written ({os.strerror(error.errno)}); set {variable} to a directory that can be, "
            "and has room"
        ) from error
