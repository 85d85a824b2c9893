"""Faces: found, tracked, aligned."""

from .alignment import Aligner, alignment_points, crop, crop_matrix
from .detector import Face, FaceDetector
from .landmarks import FaceMesh, Roi, lip_gap
from .tracking import FaceObservation, FaceTracker, Tracker

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
