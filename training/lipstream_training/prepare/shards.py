"""Shards: tar files in WebDataset's format, reproducible bit for bit, with random access."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lipstream.atomic import new_file
from lipstream.errors import ConfigError
from numpy.typing import NDArray
from safetensors.numpy import load
from safetensors.torch import load_file
from torch import Tensor

from .encode import Encoder
from .sample import Sample, decode, sound

INDEX = "index.json"
CONSTANTS = "constants.safetensors"
"""The prompt embedding `text` and the latent mask `mask`, beside shards with latents."""
_CHUNK = 1 << 20


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Samples (key, extension -> content) as a tar whose headers hold only names and sizes, written atomically."""
    with new_file(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples:
            for extension in sorted(files):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(files[extension])
                tar.addfile(info, io.BytesIO(files[extension]))


def read_tar(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What `write_tar` wrote, sample by sample."""
    with tarfile.open(path) as tar:
        key, files = "", dict[str, bytes]()
        for info in tar:
            name, _, extension = info.name.partition(".")
            if name != key and files:
                yield key, files
                files = {}
            content = tar.extractfile(info)
            assert content is not None
            key, files[extension] = name, content.read()
        if files:
            yield key, files


def locate(path: Path) -> dict[str, dict[str, list[int]]]:
    """key -> extension -> [offset, bytes] of all contents of a tar."""
    found: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            key, _, extension = info.name.partition(".")
            found.setdefault(key, {})[extension] = [info.offset_data, info.size]
    return found


def load_constants(folder: Path) -> dict[str, Tensor]:
    """`text` [text_len, text_dim] and `mask` [h, w], 1 = keep, of a folder of shards with latents.

    Raises:
        ConfigError: the folder has no such file.
    """
    path = folder / CONSTANTS
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no {CONSTANTS}",
            fix="prepare it with --encode, or --vae, --wav2vec, --text and --mask",
        )
    return load_file(path)


@dataclass(frozen=True)
class _Place:
    shard: Path
    key: str
    files: dict[str, list[int]]


def _places(folder: Path) -> list[_Place]:
    if not (folder / INDEX).is_file():
        raise ConfigError(f"{folder} holds no finished shards: no {INDEX}", fix=f"lipstream-train prepare {folder} ...")
    index = json.loads((folder / INDEX).read_text())
    places = [
        _Place(folder / shard["name"], key, files)
        for shard in index["shards"]
        for key, files in shard["samples"].items()
    ]
    if not places:
        raise ConfigError(f"{folder} holds no clip", fix=f"see {folder / 'report.html'}, and give other videos")
    return places


class Shards:
    """Clips of folders that `lipstream-train prepare` wrote, by number. Several processes may read them at once.

    `webdataset` can read the tar files, too, in order.

    Attributes:
        sizes: clips of each folder; clips are numbered through, folder by folder.

    Args:
        encoder: computes latents and features of clips that have none; None to leave them out.

    Raises:
        ConfigError: a folder holds no finished shards, or no clip.
    """

    def __init__(self, folders: Path | Sequence[Path], encoder: Encoder | None = None) -> None:
        self._encoder = encoder
        found = [_places(folder) for folder in ([folders] if isinstance(folders, Path) else folders)]
        self.sizes = [len(places) for places in found]
        self._places = list(chain.from_iterable(found))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Sample:
        sample = decode(self._read(number, self._places[number].files))
        if self._encoder is not None and "target" not in sample.tensors:
            sample.tensors.update(self._encoder.encode(sample))
        return sample

    def tensors(self, number: int) -> dict[str, NDArray[Any]]:
        """`Sample.tensors` alone, without decoding pictures."""
        files = self._read(number, self._places[number].files.keys() & {"safetensors"})
        return load(files["safetensors"]) if files else {}

    def sound(self, number: int) -> NDArray[np.float32]:
        """`Sample.sound` alone."""
        return sound(self._read(number, ["sound.wav"])["sound.wav"])

    def _read(self, number: int, extensions: Iterable[str]) -> dict[str, bytes]:
        place = self._places[number]
        contents = {}
        with place.shard.open("rb") as file:
            for extension in extensions:
                offset, size = place.files[extension]
                file.seek(offset)
                contents[extension] = file.read(size)
        return contents
