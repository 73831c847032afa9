"""Output folders: nothing is overwritten, nothing left half-written, no label becomes a path."""

__all__ = [
    "LOCK",
    "claim",
    "mappable",
    "new_folder",
    "publish",
    "slug",
    "whole",
    "write_json",
    "write_text",
]

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UsageError

LOCK = ".ebm-from-clf.lock"


def new_folder(path: str | Path) -> Path:
    """Creates an output folder, with its parents; one that exists must be empty.

    Arguments:
        path: The folder.

    Raises:
        UsageError: If it holds something already, is a file, or cannot be written.
    """
    path = Path(path)
    try:
        if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {LOCK}):
            raise UsageError(
                f"{path}: holds something already. Choose another --output, or remove it."
            )
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


@contextmanager
def claim(folder: str | Path) -> Iterator[None]:
    """Keeps other processes out of a folder for a while.

    Arguments:
        folder: The folder, created if it is missing and removed if nothing came into it. The
            claim ends with the process, however it ends.

    Raises:
        UsageError: If another process has claimed it, or it cannot be written.
    """
    folder = Path(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        if not _lock(file):
            raise UsageError(
                f"{folder}: another process works in it. Wait, or choose another --output."
            )
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def publish(path: str | Path) -> Iterator[Path]:
    """Gives a folder beside the one asked for, and renames it to that once it is complete.

    Arguments:
        path: The folder that appears when all went well, and not at all otherwise.

    Raises:
        UsageError: If the folder exists and is not empty, or cannot be written.
    """
    path = Path(path)
    # An empty folder may be a mount, a link or the present one: it is filled, not replaced.
    there = path.exists()
    if there:
        new_folder(path)
    staging = new_folder((path if there else path.parent) / f".{path.name}.{os.getpid()}.tmp")
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                # Some writers create files only their owner can read, whatever the umask.
                file.chmod(0o666 & ~_umask())
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        try:
            for source in list(staging.iterdir()) if there else [staging]:
                os.replace(source, path / source.name if there else path)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def mappable(path: str | Path | None, n_bytes: int) -> Iterator[str]:
    """Gives a file to be mapped into memory, which grows as it is written.

    Arguments:
        path: The file, made if there is none. `None` for one in the folder of temporary files
            (on some systems memory) that has no name afterwards and goes with the process.
        n_bytes: What it may grow to.

    Raises:
        UsageError: If there is too little room: a process that maps a file on a full disk is
            killed without a word.
    """
    with tempfile.NamedTemporaryFile() if path is None else Path(path).open("ab") as file:
        taken = os.fstat(file.fileno()).st_blocks * 512
        room = shutil.disk_usage(Path(file.name).parent).free + taken
        if n_bytes > room:
            raise UsageError(
                f"{file.name}: may grow to {n_bytes / 1e9:.1f} GB, there is room for "
                f"{room / 1e9:.1f}. Keep fewer chains, or put the folder on another disk."
            )
        yield file.name


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Gives a file beside the one asked for, and renames it to that once it is written.

    Arguments:
        path: The file: the old one, or the new one, never half of each.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Writes JSON in one piece; NaN is refused, since other readers choke on it.

    Arguments:
        path: The file.
        value: What to write.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes a text in one piece: the file is the old one or the new one.

    Arguments:
        path: The file.
        text: What to write.
    """
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def slug(label: str) -> str:
    """Returns a label as a harmless part of a file name, at most 40 characters.

    Arguments:
        label: Any text, also an untrusted one.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", label.split(",")[0].lower()).strip("-")
    return plain[:40].strip("-") or "class"


def _lock(file: IO[str]) -> bool:
    """Locks a file, and tells whether no other process had done so."""
    import fcntl  # not on Windows, where runs are not supported

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Not one that its last owner has removed meanwhile.
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return True  # a file system without locks


def _unwritable(path: str | Path, error: OSError) -> UsageError:
    reason = error.strerror or type(error).__name__
    return UsageError(f"{path}: cannot be written ({reason}). Choose another --output.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
