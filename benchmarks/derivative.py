"""What the gradient of the STMD loss costs: three ways to the same numbers, timed side by side.

1. full: forward-mode derivative of the whole batch with gradients on, then a backward pass (the straightforward way);
2. no-grad: derivative of the whole batch without gradients, one graded forward and a backward pass;
3. subset: the derivative only for the items with r < t (half of them), one graded forward and a backward pass: ours.

python benchmarks/derivative.py prints the time of each as a multiple of a plain regression step (forward and backward).
"""

import time
from collections.abc import Callable

import torch

from fewstep.flow import conditional_velocity, interpolate, mean_flow_target, total_derivative
from fewstep.networks import MLPConfig
from fewstep.networks.unet import MNIST_UNET
from fewstep.recipes.digits import DIGITS_UNET
from fewstep.shapes import per_item


def main(repeats: int = 7) -> None:
    """Print one line for each network."""
    cases = (("MLP, 2-d, batch 512", MLPConfig(), (2,), 512), ("U-Net, 8 x 8, batch 64", DIGITS_UNET, (1, 8, 8), 64),
             ("U-Net, 28 x 28, batch 16", MNIST_UNET, (1, 28, 28), 16))  # fmt: skip
    print(f"{'':<26}{'plain':>8}{'full':>8}{'no-grad':>9}{'subset':>8}   (multiples of plain)")
    for name, config, shape, n in cases:
        torch.manual_seed(0)
        network = config.build(shape, inputs=2, times=3)
        w, eps, x_tau = torch.randn(3, n, *shape)
        t, tau = torch.rand(n), torch.rand(n)
        r = torch.where(torch.arange(n) % 2 == 0, t * torch.rand(n), t)
        z, v_c = interpolate(w, eps, t), conditional_velocity(w, eps)

        def u(z, r, t, x_tau, tau, network=network):
            return network(torch.cat([z, x_tau], 1), torch.stack([t, t - r, tau], 1))

        def plain(z=z, r=r, t=t, x_tau=x_tau, tau=tau, v_c=v_c, u=u) -> None:
            (u(z, r, t, x_tau, tau) - v_c).square().mean().backward()

        def full(z=z, r=r, t=t, x_tau=x_tau, tau=tau, v_c=v_c, u=u) -> None:
            value, du_dt = total_derivative(u, z, r, t, v_c, (x_tau, tau))
            (value - (v_c - per_item(t - r, z) * du_dt).detach()).square().mean().backward()

        def no_grad(z=z, r=r, t=t, x_tau=x_tau, tau=tau, v_c=v_c, u=u) -> None:
            with torch.no_grad():
                _, du_dt = total_derivative(u, z, r, t, v_c, (x_tau, tau))
            (u(z, r, t, x_tau, tau) - (v_c - per_item(t - r, z) * du_dt)).square().mean().backward()

        def subset(z=z, r=r, t=t, x_tau=x_tau, tau=tau, v_c=v_c, u=u) -> None:
            target = mean_flow_target(u, z, r, t, v_c, (x_tau, tau))
            (u(z, r, t, x_tau, tau) - target).square().mean().backward()

        ways: list[Callable[[], None]] = [plain, full, no_grad, subset]
        times: list[list[float]] = [[] for _ in ways]
        for _ in range(repeats):
            for way, record in zip(ways, times, strict=True):
                network.zero_grad()
                start = time.perf_counter()
                way()
                record.append(time.perf_counter() - start)
        best = [min(record) for record in times]
        ratios = [value / best[0] for value in best[1:]]
        print(f"{name:<26}{best[0] * 1e3:>6.0f}ms{ratios[0]:>8.2f}{ratios[1]:>9.2f}{ratios[2]:>8.2f}")


if __name__ == "__main__":
    main()
