"""Detects, tracks, aligns and composites faces."""

from .alignment import Aligner, alignment_points, crop, crop_matrix
from .compositing import Overlay
from .detector import Face, FaceDetector
from .doubt import Doubt, MouthWatch
from .landmarks import FaceMesh, Roi, lip_gap
from .options import FaceOptions
from .pipeline import FacePipeline, LipStreamFacePipeline, UpstreamFacePipeline
from .tracking import FaceObservation, FaceTracker, Tracker

__all__ = [
    "Aligner",
    "Doubt",
    "Face",
    "FaceDetector",
    "FaceMesh",
    "FaceObservation",
    "FaceOptions",
    "FacePipeline",
    "FaceTracker",
    "LipStreamFacePipeline",
    "MouthWatch",
    "Overlay",
    "Roi",
    "Tracker",
    "UpstreamFacePipeline",
    "alignment_points",
    "crop",
    "crop_matrix",
    "lip_gap",
]
