"""The packages of the field, for the rows of peers.py: each with its own loss, sampler and buffer.

    pip install ebmkit torchebm

`ebmkit` is its example for MNIST (train_mnist_jem.py): Langevin of step 10 and noise .005, each
gradient clipped at .01, 60 steps on [-1, 1], chains from uniform noise, 5 % begun anew, squares of
energies weighted 1, chains of random classes, Adam 1e-4, 128 images, a moving average of .999,
which in a run of minutes holds mostly the first weights; fresh chains of 300 steps. `torchebm` is
the persistent contrastive divergence of its README, given the labels: Langevin of step .1 and
noise 1, 10 steps, a buffer begun with 100 steps from noise of .01, squares of energies weighted
.001, Adam 1e-3, 256 images; fresh chains of 500 steps.

`ebmkit/jem` and `torchebm/jem` are what who knows the field would write with the same classes:
JEM's step of 1 with noise .01, 20 steps, 64 images with noise .03, Adam 1e-4, neither squares of
energies nor a moving average; on the box [-1, 1], as both packages advise for images. Fresh chains
of 400 steps.

In all of them the network is that of the other rows, its BatchNorm at rest, and a buffer holds
1000 chains, not 10000 or 8192: of more, most would hardly be moved in a run of minutes. torchebm
has no classifier: its energy here is -f_y(x), and a cross-entropy is added to its loss.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from ebm_from_clf.data import gather

BOX = (-1.0, 1.0)
CHAINS = 1000
AT_ONCE = 250


class AtRest(nn.Module):
    """Creates a network that stays in evaluation mode, whatever a trainer asks for."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.train()

    def train(self, mode=True):
        return super().train(False)

    def forward(self, x):
        return self.network(x)


def batches(x, y, size, noise=0.0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields random images, on [-1, 1], and labels without end."""
    while True:
        pick = torch.randint(len(x), (size,))
        yield x[pick] + noise * torch.randn(size, *x.shape[1:]), y[pick]


def ebmkit(network, x, y, clock, device, jem):
    import ebm

    def uniform(shape):
        return 2 * torch.rand(shape) - 1

    if jem:
        sampler = ebm.LangevinDynamics(1.0, 20, noise_scale=0.01, clamp=BOX)
        square, average, data, length = 0.0, None, batches(x, y, 64, 0.03), 400
    else:
        sampler = ebm.LangevinDynamics(10.0, 60, noise_scale=0.005, grad_clip=0.01, clamp=BOX)
        square, average, data, length = 1.0, 0.999, batches(x, y, 128), 300
    buffer = ebm.ReplayBuffer(CHAINS, x.shape[1:], reinit_prob=0.05, init_fn=uniform)
    divergence = ebm.ContrastiveDivergence(sampler, buffer=buffer, energy_reg=square)
    loss = ebm.JEMLoss(divergence, conditional_negatives=True)
    energy = ebm.ClassifierEnergy(network)
    trainer = ebm.Trainer(energy, loss, lr=1e-4, device=device, ema_decay=average)

    def look():
        shown = energy if trainer.ema is None else trainer.ema.module

        def chains(classes):
            start = uniform((len(classes), *x.shape[1:])).to(device)
            return sampler.sample(shown.condition(classes), start, steps=length)

        return shown.net.network, chains, length

    trainer.callback = lambda update, out: clock(update, look)
    trainer.fit(data, steps=10**9, verbose=False)


def torchebm(network, x, y, clock, device, jem):
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    class Energy(BaseModel):
        def __init__(self):
            super().__init__(device=device)
            self.net = network

        def forward(self, x, y=None):
            logits = self.net(x)
            # Without labels its buffer begins: with the energy of all classes together.
            return -logits.logsumexp(1) if y is None else -logits.gather(1, y[:, None])[:, 0]

    energy = Energy()
    if jem:
        # The noise of a step is sqrt(2 step) noise_scale.
        step = {"step_size": 1.0, "noise_scale": 0.01 / 2**0.5, "clamp": BOX}
        options = {"k_steps": 20, "init_steps": 0, "energy_reg_weight": 0.0}
        rate, data, length = 1e-4, batches(x, y, 64, 0.03), 400
    else:
        step, options = {"step_size": 0.1, "noise_scale": 1.0}, {"k_steps": 10}
        rate, data, length = 1e-3, batches(x, y, 256), 500
    sampler = LangevinDynamics(model=energy, device=device, **step)
    loss = ContrastiveDivergence(
        model=energy,
        sampler=sampler,
        persistent=True,
        buffer_size=CHAINS,
        device=device,
        **options,
    )
    optimizer = torch.optim.Adam(energy.parameters(), lr=rate)

    def chains(classes):
        start = 0.01 * torch.randn(len(classes), *x.shape[1:], device=device)
        return sampler.sample(x=start, n_steps=length, y=classes)

    for update, (images, labels) in enumerate(data, 1):
        images, labels = images.to(device), labels.to(device)
        value, _ = loss(images, y=labels)
        value = value + functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        clock(update, lambda: (network.network, chains, length))


PACKAGES = {
    "ebmkit": (ebmkit, "ebm", False),
    "ebmkit/jem": (ebmkit, "ebm", True),
    "torchebm": (torchebm, "torchebm", False),
    "torchebm/jem": (torchebm, "torchebm", True),
}


@contextmanager
def seeded(seed):
    """Seeds torch's global generator, from which the packages draw, and puts it back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def missing(name):
    """Returns what to install for a row, `None` if it is there or none is needed."""
    if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name][1]):
        return None
    return name.split("/")[0]


def train(name, classifier, space, dataset, seed, clock):
    """Trains a classifier as a package does, until the clock raises.

    The clock is given the updates made and a function that returns the network and a draw of n
    images of each of 10 classes, in [0, 1], with the steps of their chains.
    """
    method, _, jem = PACKAGES[name]
    device = space.mean.device
    x, y = gather(dataset)
    x = space(x.to(device)).cpu()

    def watch(update, look):
        def shown():
            network, chains, length = look()

            def draw(n):
                parts = torch.arange(10, device=device).repeat_interleave(n).split(AT_ONCE)
                with seeded(seed):  # so that looking leaves the training as it was
                    images = torch.cat([chains(part) for part in parts])
                return (images * space.std + space.mean).clamp(0, 1).cpu(), length

            return network, draw

        clock(update, shown)

    with seeded(seed):
        method(AtRest(classifier), x, y, watch, device, jem)
