"""What one stage of distillation does: one definition for the command line, the file and the log."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lipstream.errors import ConfigError

Stage = Literal["teacher", "forcing", "self_forcing"]
Reward = Literal["none", "exp", "centred", "self_normalised", "batch_mean"]
Scoring = Literal["published", "upstream"]
Centre = Literal["updates", "batches"]
FirstLatent = Literal["reference", "target"]
NonFinite = Literal["skip", "zero"]

BASES = ("default", "released")
"""Names of the recipes that another one can start from."""
_SAME: Any = object()


def _option(default: Any, text: str, *, released: Any = _SAME) -> Any:
    """A field; `released` is its value in upstream's training of the published student, where that is another one."""
    return field(default=default, metadata={"help": text, "released": default if released is _SAME else released})


@dataclass(frozen=True)
class Recipe:
    """The defaults are the recipe `default`: sizes and rates of the published stage 2 at 14B, without its defects.

    `released` gives the recipe `released`, which trains as upstream's code does.
    """

    stage: Stage = _option("self_forcing", "teacher (0), forcing (1) or self_forcing (2)")  # noqa: RUF009
    student: str = _option("14b", "sizes of the model: 14b, 1.3b, tiny or micro")
    iterations: int = _option(600, "updates, if counted from 0; in self_forcing of the critic")
    count_from: int = _option(
        0,
        "number of the first update, 0 or 1; upstream counts from 1 to `iterations` - 1, and updates the student when "
        "`update_ratio` divides the number",
        released=1,
    )
    batch: int = _option(1, "clips on each rank at once")
    frames: int = _option(0, "latent frames of each clip that are used, its first; 0: all")
    first_latent: FirstLatent = _option(  # noqa: RUF009
        "reference",
        "clip whose first latent frame is the reference frame of all frames. target: the clip to be generated, as "
        "upstream, which shows its first mouth",
        released="target",
    )
    accumulate: int = _option(4, "batches whose gradients make one update")
    rate: float = _option(2e-6, "learning rate of the model, constant after the warm-up")
    critic_rate: float = _option(2e-6, "learning rate of the fake score")
    warm_up: int = _option(0, "updates in which the rate rises linearly")
    beta1: float = _option(0.0, "of AdamW")
    beta2: float = _option(0.999, "of AdamW")
    weight_decay: float = _option(0.01, "of AdamW")
    clip: float = _option(10.0, "largest norm of the model's gradient, which is clipped to it; 0: no clipping")
    critic_clip: float = _option(
        10.0, "largest norm of the fake score's gradient; 0: no clipping, as upstream", released=0.0
    )
    non_finite: NonFinite = _option(  # noqa: RUF009
        "skip",
        "an update whose gradient has infinities or NaN. skip: weights stay as they are. zero: NaN count as 0 and "
        "infinities as the largest number, as upstream, so that clipping leaves 0; skip where nothing is clipped",
        released="zero",
    )
    average: float = _option(0.0, "decay of the moving average of the weights; 0: none, as upstream")
    lora: int = _option(128, "rank of the adapters on q, k, v, o and the feed-forward; 0: all weights are trained")
    lora_alpha: int = _option(64, "their scale times their rank")
    continue_adapters: bool = _option(
        True,
        "train the adapters of --init on, and the critic's, as upstream; false: merge them and start new ones, B = 0",
    )
    precision: Literal["bf16", "fp32"] = _option("bf16", "of products; weights and updates stay in float32")
    checkpointing: bool = _option(True, "recompute each block's activations in the backward pass")
    seed: int = _option(0, "of all random numbers")
    save_every: int = _option(100, "updates between two checkpoints")
    keep_every: int = _option(0, "every how many-th checkpoint is kept for good; 0: only the last two are kept")
    sample_every: int = _option(100, "updates between two samples in the log; 0: none")

    drop: float = _option(0.1, "teacher: share of clips without audio and prompt, so that it can be guided")
    time_shift: float = _option(5.0, "teacher and scores: shift of times towards noise")

    windows: tuple[tuple[int, int], ...] = _option(
        ((7, 1), (10, 1), (13, 1), (9, 3), (12, 3)), "forcing: windows and sinks, one of which is drawn for each pass"
    )
    window_per_batch: bool = _option(
        False, "forcing: draw a window for each batch of each rank, as upstream; false: for each update", released=True
    )
    sink_moves: bool = _option(
        False, "forcing: index the sink at the window's start, as in a stream; upstream: by its place in the clip"
    )

    kv_cleared_before_backward: bool = _option(
        False,
        "compute the student's blocks again with K and V of earlier chunks as zeros, so that its gradient is wrong, as "
        "upstream's; needs checkpointing",
        released=True,
    )
    update_ratio: int = _option(5, "updates of the critic to one of the student")
    critic_first: bool = _option(
        True,
        "update the critic before the student's gradient is computed; false: both at the end, as upstream, so that the "
        "student sees the critic before the update",
        released=False,
    )
    exit_per_batch: bool = _option(
        False,
        "draw the rollout's last step for each accumulated batch, as upstream; false: for each update",
        released=True,
    )
    guidance: float = _option(4.5, "of the teacher, inside the gate")
    gate: tuple[float, float] = _option((0.556, 0.882), "times at which the teacher is guided: the sync window")
    reward: Reward = _option("exp", "how SyncNet's confidence weighs the clips: exp is upstream's")  # noqa: RUF009
    reward_scoring: Scoring = _option(  # noqa: RUF009
        "published",
        "Sync-C of the reward. published: as SyncNet's code, sound zero beyond its ends, pictures rounded after "
        "resizing. upstream: overlapping parts only, pictures truncated before resizing",
        released="upstream",
    )
    reward_centre: Centre = _option(  # noqa: RUF009
        "updates",
        "moving average (decay 0.9) that the reward `centred` subtracts. updates: of the means of all updates before. "
        "batches: of the batches of each rank, the present one included, as upstream",
        released="batches",
    )
    reward_beta: float = _option(2.0, "its exponent")
    reward_clamp: float = _option(0.0, "largest exponent; 0: none, as upstream")
    exact_critic: bool = _option(
        True,
        "divide the critic's gradient by `accumulate` in the student's iterations, too; upstream does not",
        released=False,
    )

    def __post_init__(self) -> None:
        kinds = {
            "stage": Stage,
            "reward": Reward,
            "precision": Literal["bf16", "fp32"],
            "non_finite": NonFinite,
            "reward_scoring": Scoring,
            "reward_centre": Centre,
            "first_latent": FirstLatent,
        }
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} {getattr(self, name)!r}", expected=", ".join(get_args(kind)))
        for name in ("iterations", "batch", "accumulate", "update_ratio", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}", expected="1 or more")
        if self.count_from not in (0, 1) or self.updates < 1:
            raise ConfigError(f"count_from {self.count_from}", expected="0, or 1 with 2 iterations or more")
        if self.stage == "self_forcing" and self.kv_cleared_before_backward and not self.checkpointing:
            raise ConfigError(
                "kv_cleared_before_backward without checkpointing changes nothing: no block is computed again",
                fix="--checkpointing true, or --kv-cleared-before-backward false",
            )
        if self.keep_every < 0:
            raise ConfigError(f"keep_every {self.keep_every}", expected="0 for none, or every how many-th checkpoint")
        if self.frames < 0:
            raise ConfigError(f"frames {self.frames}", expected="0 for all, or how many")
        if not 0 <= self.gate[0] <= self.gate[1] <= 1:
            raise ConfigError(f"gate {self.gate}", expected="two times in [0, 1], the smaller one first")

    @property
    def updates(self) -> int:
        """How many updates the stage has."""
        return self.iterations - self.count_from

    def fields(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def base_values(name: str) -> dict[str, Any]:
    """The fields of the recipe `name`, one of `BASES`.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in BASES:
        raise ConfigError(f"recipe {name!r}", expected=" or ".join(BASES))
    released = name == "released"
    return {f.name: f.metadata["released"] if released else f.default for f in dataclasses.fields(Recipe)}


def load_recipe(source: str | Path | None, **changes: Any) -> Recipe:
    """A recipe with some fields changed.

    Args:
        source: "default" or "released"; or a TOML file of fields, whose key `recipe` names the one of these that it
            changes ("default" without that key); None: "default".

    Raises:
        ConfigError: no such file, no TOML, unknown fields, or invalid values.
    """
    values: dict[str, Any] = {"recipe": source} if source in BASES else {} if source is None else _read(Path(source))
    base = base_values(values.pop("recipe", "default"))
    values |= changes
    if unknown := sorted(values.keys() - base.keys()):
        raise ConfigError(f"unknown in a recipe: {', '.join(unknown)}", expected=", ".join(base))
    return Recipe(**base | {name: _as(base[name], value, name) for name, value in values.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        message = f"no recipe {path}: {error.strerror}"
        raise ConfigError(message, expected=f"{', '.join(BASES)}, or a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error


def _as(default: Any, value: Any, name: str) -> Any:
    """`value` in the default's type: lists become tuples, whole numbers floats, strings are parsed."""
    try:
        if isinstance(default, tuple):
            if isinstance(value, str):
                value = tomllib.loads(f"x = [{value}]")["x"]
            return tuple(tuple(x) if isinstance(x, list) else x for x in value)
        if isinstance(default, bool):
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
        return type(default)(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} {value!r}", expected=f"something like {default!r}") from error
