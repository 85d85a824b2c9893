"""The server on Ray Serve: replicas on many machines, each with its own engine. Needs `lipstream[ray]`.

Admission control is the server's. Ray Serve's own answers a WebSocket over capacity with error 500; here every replica
refuses with close code 1013, and Ray is given a limit of two sessions more. Ray does not consider open sessions when it
scales in, so it scales in slowly, and a replica that is to stop gets as long as a session may last.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, MissingExtraError
from .app import create_app
from .settings import Settings

LOAD = 0.7
"""Share of a replica's sessions beyond which another one is started."""


def application(settings: Settings, *, least: int = 1, replicas: int = 4, gpus: float = 0.0, cpus: float = 1.0) -> Any:
    """A Ray Serve application, for `serve.run(application(...))`.

    Args:
        settings: `max_sessions` must be given: Ray has to know it before the first replica runs.
        least, replicas: how many run at least, and at most. gpus, cpus: of each.

    Raises:
        MissingExtraError, ConfigError.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError(
            f"Ray Serve needs the module {error.name!r}, which is not installed", fix="pip install 'lipstream[ray]'"
        ) from error
    if settings.max_sessions < 1:
        raise ConfigError("max_sessions 0", expected="how many sessions one replica runs; lipstream serve logs it")
    most = settings.max_sessions

    @serve.deployment(
        max_ongoing_requests=most + 2,
        max_queued_requests=2 * most,
        graceful_shutdown_timeout_s=settings.total_limit,
        health_check_period_s=1,
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": replicas,
            "target_ongoing_requests": max(1.0, LOAD * most),
            "upscale_delay_s": 2,
            "downscale_delay_s": 600,
        },
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    @serve.ingress(lambda: create_app(settings))
    class LipStream:
        """One replica."""

    deployment: Any = LipStream
    return deployment.bind()
