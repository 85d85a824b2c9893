"""Faces: found, tracked, aligned."""

from lipstream.face.align import Aligner, alignment_points, crop, crop_matrix
from lipstream.face.detector import Face, FaceDetector
from lipstream.face.landmarks import FaceMesh, Roi, lip_gap
from lipstream.face.track import FaceObservation, FaceTracker, Tracker

__all__ = [
    "Aligner",
    "Face",
    "FaceDetector",
    "FaceMesh",
    "FaceObservation",
    "FaceTracker",
    "Roi",
    "Tracker",
    "alignment_points",
    "crop",
    "crop_matrix",
    "lip_gap",
]
