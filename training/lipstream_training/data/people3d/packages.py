"""Data files of packages that are read without being imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lipstream.errors import MissingExtraError

FIX = 'pip install "lipstream[people]"'


def package_folder(package: str, folder: str) -> Path:
    """`folder` of an installed package.

    Raises:
        MissingExtraError: the package is not installed, or has no such folder.
    """
    try:
        found = distribution(package)
    except PackageNotFoundError as error:
        raise MissingExtraError(f"{package} is not installed", expected="the data of 3D people", fix=FIX) from error
    path = Path(str(found.locate_file(folder)))
    if not path.is_dir():
        raise MissingExtraError(f"{package} {found.version} has no folder {folder}", fix=FIX)
    return path
