"""A contact sheet of 3D people: ``python -m lipstream_training.data.people3d.sheet OUT.jpg``."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..faces import pose_track
from .backdrop import Backdrop
from .light import Light
from .person import Person
from .shot import Shot, finer
from .visemes import Manner, Segment, viseme_track

_SAID = ("rest", "p", "a", "f", "w", "sh", "i", "s")
_SIDE = 112


def contact_sheet(people: int = 7, first: int = 0) -> NDArray[np.uint8]:
    """A row for each person and a column for each of: rest, p, a, f, w, sh, i, s. uint8 [h, w, 3] RGB."""
    rows = []
    for seed in range(first, first + people):
        rng = np.random.default_rng([3, seed])
        shot = Shot(Person(rng), Light.random(rng), rng)
        pose, manner, zoom = pose_track(25, rng)[0], Manner.random(rng), _SIDE / 235
        middle = shot.project(np.array([[pose.x / 110, 6.95 - pose.y / 110, 1.2]]))[0]
        offset = (_SIDE / 2 - zoom * middle)[:, None]
        to_image = np.hstack([np.eye(2) * zoom, offset])
        behind = Backdrop(rng, zoom).seen(finer(to_image, 2), (2 * _SIDE, 2 * _SIDE))
        row = []
        for viseme in _SAID:
            units = viseme_track([Segment(viseme, 0.0, 0.4)], 10, manner).units(5, manner)
            row.append(shot.develop(shot.render(shot.place(units, pose), to_image, (_SIDE, _SIDE)), behind))
        rows.append(np.hstack(row))
    return np.vstack(rows)


if __name__ == "__main__":
    picture = cv2.cvtColor(contact_sheet(), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    Path(sys.argv[1]).write_bytes(encoded.tobytes())
