"""An adversarial loss on pictures, weighed against the other losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .optim import Descent


class Critic(nn.Module):
    """Discriminator of patches of about 20 pixels: high for original pictures, low for decoded ones."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32, 4, 2), (32, 64, 4, 2), (64, 64, 3, 1), (64, 1, 3, 1))
        layers: list[nn.Module] = []
        for n_in, n_out, kernel, stride in sizes:
            conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, 1, H / 4, W / 4]."""
        return cast(Tensor, self.layers(2 * pictures - 1))


class Adversary(nn.Module):
    """A critic that is trained beside the model that it judges, by the hinge loss.

    Args:
        last: weights of the model's last layer. share: the gradient of the adversarial loss there, over that of all
            other losses (Esser et al., VQGAN).
        steps, rate: of the critic's descent.
        halvings: how often the critic sees the pictures once more, each time at half the size before.
    """

    def __init__(self, last: Tensor, share: float, steps: int, rate: float, *, halvings: int = 0) -> None:
        super().__init__()
        self.critics = nn.ModuleList(Critic() for _ in range(1 + halvings))
        self.descent = Descent([self.critics], steps, rate)
        self._last, self._share = [last], share  # in a list: the parameter is not this module's

    def loss(self, other: Tensor, made: Tensor) -> Tensor:
        """The loss of pictures `made` [N, 3, H, W] in [0, 1], to be added to `other`, the sum of all other losses."""
        doubt = -torch.stack([verdict.mean() for verdict in self._verdicts(made)]).mean()
        pulls = [torch.autograd.grad(x, self._last, retain_graph=True)[0].norm() for x in (other, doubt)]
        weight: Tensor = self._share * (pulls[0] / (pulls[1] + 1e-6)).clamp(max=10).detach()
        return weight * doubt

    def learn(self, real: Tensor, made: Tensor) -> None:
        """Make one step of the critic, which tells `real` pictures from those `made`."""
        error = real.new_zeros(())
        for verdict in self._verdicts(torch.cat([real, made.detach()])):
            of_real, of_made = verdict.chunk(2)
            error = error + F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean()
        self.descent.step(error)

    def _verdicts(self, pictures: Tensor) -> Iterator[Tensor]:
        for halvings, critic in enumerate(self.critics):
            with torch.autocast("cpu", torch.bfloat16):
                verdict = critic(F.avg_pool2d(pictures, 2**halvings))
            yield verdict.float()

    def get_extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.descent.optimizer.state_dict(), "schedule": self.descent.schedule.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.descent.optimizer.load_state_dict(state["optimizer"])
        self.descent.schedule.load_state_dict(state["schedule"])
