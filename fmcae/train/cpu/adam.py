"""Adam on a CPU."""

import numpy as np
import torch
from torch import Tensor

from fmcae.train.cpu.backend import FusedBackend
from fmcae.train.cpu.layers import as_numpy, compiled

BETA1_REST, BETA2, BETA2_REST, EPSILON = np.float32(0.1), np.float32(0.999), np.float32(0.001), np.float32(1e-8)


@compiled
def adam(parameter, grad, exp_avg, exp_avg_sq, step_size, root_correction):  # type: ignore[no-untyped-def]
    """One step of Adam, beta (0.9, 0.999), eps 1e-8, on flat float32 arrays of one length, in place.

    ``step_size`` is the learning rate over 1 - 0.9^t, ``root_correction`` the root of 1 - 0.999^t, at the t-th step.
    Source: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1, with its parts in PyTorch's order.
    """
    for i in range(parameter.shape[0]):
        g = grad[i]
        exp_avg[i] += (g - exp_avg[i]) * BETA1_REST
        exp_avg_sq[i] = exp_avg_sq[i] * BETA2 + g * g * BETA2_REST
        parameter[i] -= step_size * exp_avg[i] / (np.sqrt(exp_avg_sq[i]) / root_correction + EPSILON)


class FusedAdam:
    """Adam over the parameters that are trained, on the threads of ``backend``.

    Its state has the names of :class:`torch.optim.Adam`'s, whose construction alone imports PyTorch's compiler for a
    second.
    """

    def __init__(self, backend: FusedBackend, learning_rate: float) -> None:
        self.parameters = [parameter for parameter in backend.network.parameters() if parameter.requires_grad]
        self.state: dict[Tensor, dict[str, Tensor]] = {p: adam_state(p) for p in self.parameters}
        self._arrays = [
            [
                as_numpy(tensor).reshape(-1)
                for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"])
            ]
            for parameter, state in self.state.items()
        ]  # the same memory
        self._backend = backend
        self._learning_rate = learning_rate

    def step(self) -> None:
        """Take one step along each ``parameter.grad``."""
        gradients = [as_numpy(parameter.grad).reshape(-1) for parameter in self.parameters]  # type: ignore[arg-type]
        for *_, step in self._arrays:
            step += 1
        count = int(step[0])
        step_size = np.float32(self._learning_rate / (1 - 0.9**count))
        root_correction = np.float32((1 - 0.999**count) ** 0.5)
        threads = self._backend.threads

        def step_part(thread: int, _: int) -> None:
            for gradient, (parameter, exp_avg, exp_avg_sq, _step) in zip(gradients, self._arrays, strict=True):
                size = -(-len(parameter) // threads)
                own = slice(thread * size, (thread + 1) * size)
                adam(parameter[own], gradient[own], exp_avg[own], exp_avg_sq[own], step_size, root_correction)

        self._backend.run_parts(step_part, threads, 1)


def adam_state(parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter before the first step."""
    return {
        "step": torch.zeros((), device=parameter.device),  # where PyTorch's fused Adam keeps it
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
