"""Distilling students: the paper's three stages, on one process or many."""

from .recipe import Recipe, load_recipe
from .rollout import Batch, roll_out
from .stages import Losses, Networks
from .trainer import Trainer

__all__ = ["Batch", "Losses", "Networks", "Recipe", "Trainer", "load_recipe", "roll_out"]
