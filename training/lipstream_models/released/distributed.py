"""Folders of ``torch.distributed.checkpoint``, as training on several GPUs writes them.

Their index, ``.metadata``, is a pickle: it is read with a list of allowed classes, so that nothing else is executed.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from lipstream.errors import CheckpointError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

INDEX = ".metadata"
_ALLOWED = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    },
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}

_BROKEN: tuple[type[BaseException], ...] = (
    *(CheckpointException, OSError, EOFError, ImportError, RuntimeError, ValueError, TypeError, AttributeError),
    *(LookupError, AssertionError),
)
"""What the reader raises on truncated or foreign files."""


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_type and name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads tensors with an index that was already read; torch loads each with ``weights_only``."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self._index


def open_folder(folder: Path, *, shapes_only: bool = False) -> dict[str, Tensor]:
    """All tensors of a folder by name, in memory: the format cannot be mapped.

    Args:
        shapes_only: tensors on the device "meta"; only the index is read.

    Raises:
        CheckpointError: not such a folder; its index holds code; files are missing or truncated.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            index = _Index(file).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError(f"it is a {type(index).__name__}")
        entries = {k: x for k, x in index.state_dict_metadata.items() if isinstance(x, TensorStorageMetadata)}
        device = "meta" if shapes_only else "cpu"
        tensors = {k: torch.empty(x.size, dtype=x.properties.dtype, device=device) for k, x in entries.items()}
        if not shapes_only:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the warning about the missing process group
                load(tensors, storage_reader=_Reader(folder, index), no_dist=True)
        return tensors
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is a folder without {Path(error.filename or INDEX).name}",
            expected=f"a file of weights (.safetensors, .pth, .pt), or a checkpoint folder with {INDEX}",
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{folder / INDEX} is no plain index; nothing in it was executed: {error}",
            expected="a folder that torch.distributed.checkpoint.save wrote",
        ) from error
    except _BROKEN as error:
        raise CheckpointError(
            f"{folder} cannot be read: {str(error)[:200]}", expected="a complete checkpoint folder", fix="copy it again"
        ) from error
