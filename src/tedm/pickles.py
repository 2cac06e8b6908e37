"""PyTorch files of strangers: tensors and plain values are read, nothing in them is executed."""

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tedm.errors import TedmError

# What torch.load raises for files that are no checkpoints, or only the beginning of one.
BROKEN = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError,
    AssertionError, OverflowError, RecursionError, MemoryError, NotImplementedError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip


def read(file: Path, allowed: Sequence[tuple[type, str]] = ()) -> Any:
    """Read a file of torch.save by an unpickler that knows tensors and plain values only.

    Args:
        file: what torch.save wrote, in its present or its old format.
        allowed: classes of ours that stand in for classes that the file may name, with those names; they
            get attributes and nothing else.

    Raises:
        TedmError: no such file, a broken one, one that asks for anything else or would unfold into more
            memory than it has bytes. Nothing of it was run.
    """
    try:
        _refuse_bomb(file)
        # The list takes pairs of a class and the name it goes by, which its annotation leaves out.
        names: list[Any] = list(allowed)
        with torch.serialization.safe_globals(names):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TedmError(f"{file}: no such file") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise TedmError(
                f"{file}: refused: its pickle asks for {named[1]}, which weights have no use for and"
                " which could run a stranger's code; nothing of it was run. If you trust it, load it with"
                " the program that wrote it and save model_state_dict alone"
            ) from None
        raise TedmError(f"{file}: not a checkpoint of PyTorch, or truncated") from None
    except BROKEN as error:
        raise TedmError(
            f"{file}: not a checkpoint of PyTorch, or truncated ({_first_line(error)})"
        ) from None
    # A tensor can claim any shape over a few bytes, by strides of 0.
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content))
    if claimed > 2 * file.stat().st_size:
        raise TedmError(
            f"{file}: refused: its tensors would unfold to {claimed:.3g} bytes, many times its own size"
        )
    return content


def _refuse_bomb(file: Path) -> None:
    """Refuse an archive whose parts add up to more than it: torch.save stores tensors as they are."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    size = file.stat().st_size
    unfolded = sum(part.file_size for part in parts)
    if unfolded > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise TedmError(
            f"{file}: refused: a compressed archive of {size} bytes that unfolds to {unfolded}, which"
            " torch.save never writes; load it with the program that wrote it and save it again"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries, lists and tuples; no container is walked twice."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, Mapping) else item)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:120] or type(error).__name__
