"""The chapters of the demo on networks, and the two networks, which are trained in seconds.

The images are the digits of scikit-learn: 1797 scans of 8 x 8 pixels, included in the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from matfree.arrays import to_host
from matfree.cli import sections
from matfree.cli.report.document import Chapter, Column, Figure, ReportBuilder, Section, Table
from matfree.cli.study import Study, StudySettings
from matfree.progress import Progress
from matfree_torch import hessian

Problem: TypeAlias = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]
"""A model, a loss and a batch, as the command ``matfree network`` expects them."""

TRAINING_IMAGES = 1500
HESSIAN_IMAGES = 400

_BATCH_SIZE = 125
_NUM_SHOWN_IMAGES = 12


def chapter(report: ReportBuilder, *, seed: int, progress: bool) -> None:
    """Add the chapters on a residual network, and on a network small enough for exact values."""
    _residual_chapter(report, seed, progress)
    _small_chapter(report, seed, progress)


def residual_problem(seed: int, *, progress: bool = False) -> Problem:
    """A trained residual network with 11,182 parameters, and 400 of its training images."""
    model = _initialized(ResidualNetwork, seed)
    images, labels = digits(torch.float32)
    _train(model, images, labels, seed=seed, epochs=6, progress=progress)
    batch = images[:HESSIAN_IMAGES], labels[:HESSIAN_IMAGES]
    return model, nn.functional.cross_entropy, batch


def small_problem(seed: int, *, progress: bool = False) -> Problem:
    """A trained network with 310 parameters in double precision, and 400 of its training images."""
    model = _initialized(_small_network, seed)
    images, labels = digits(torch.float64)
    _train(model, images, labels, seed=seed, epochs=40, progress=progress)
    batch = images[:HESSIAN_IMAGES], labels[:HESSIAN_IMAGES]
    return model, nn.functional.cross_entropy, batch


def digits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All 1797 digits: images (1797, 1, 8, 8) with values in [0, 1], and labels (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as cause:
        raise ImportError(
            "the demo needs scikit-learn, which is not installed: pip install scikit-learn."
        ) from cause
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels / 16, dtype=dtype).reshape(-1, 1, 8, 8)
    return images, torch.as_tensor(labels)


@final
class ResidualNetwork(nn.Module):
    """Two residual blocks between a convolution and a linear layer, all with batch norm."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = _normalized_convolution(1, width, 1)
        self.block1 = ResidualBlock(width, width, 1)
        self.block2 = ResidualBlock(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 10) of images (batch, 1, 8, 8)."""
        features = self.block2(self.block1(torch.relu(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


@final
class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, which is a 1 x 1 convolution if the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _normalized_convolution(inputs, outputs, stride)
        self.second = _normalized_convolution(outputs, outputs, 1)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the shortcut and the convolutions, after a ReLU."""
        return torch.relu(self.shortcut(x) + self.second(torch.relu(self.first(x))))


def _normalized_convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2),
        nn.Tanh(),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(24, 10),
    ).double()


def _initialized(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with reproducible weights; torch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def _train(
    model: nn.Module, images: Tensor, labels: Tensor, *, seed: int, epochs: int, progress: bool
) -> None:
    """Train with stochastic gradient descent and momentum; the model ends in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (TRAINING_IMAGES // _BATCH_SIZE)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    model.train()
    with Progress("training", progress) as progress_bar:
        progress_bar.start(steps)
        for step in range(steps):
            if step % (TRAINING_IMAGES // _BATCH_SIZE) == 0:
                shuffled = torch.randperm(TRAINING_IMAGES, generator=generator)
                order = torch.split(shuffled, _BATCH_SIZE)
            chosen = order[step % len(order)]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            progress_bar.show(step + 1)
    model.eval()
    model.zero_grad()


def _residual_chapter(report: ReportBuilder, seed: int, progress: bool) -> None:
    model, loss, batch = residual_problem(seed, progress=progress)
    H = hessian(model, loss, batch)
    report.add_chapter(
        Chapter(
            key="network",
            title="The Hessian of a residual network",
            text=(
                "A convolutional network with residual blocks and batch norm, trained on scanned "
                "images of digits. Its Hessian, the matrix of second derivatives of the loss with "
                f"respect to all {H.shape[0]:,} parameters, would take "
                f"{H.shape[0] ** 2 * 4 / 1e9:.1f} GB and is never formed. A matvec costs about as "
                "much as two gradients.",
            ),
            code=_code("residual_problem", seed),
            facts=_network_facts(H.shape[0], batch, seed),
        )
    )
    report.add_section(_training(model, batch, loss, "network"))
    settings = StudySettings(
        seed=seed, num_probes=64, num_steps=60, density_probes=4, compare=True, progress=progress
    )
    sections.add_sections(Study(H, "H", "network", settings), report)


def _small_chapter(report: ReportBuilder, seed: int, progress: bool) -> None:
    model, loss, batch = small_problem(seed, progress=progress)
    H = hessian(model, loss, batch)
    report.add_chapter(
        Chapter(
            key="small_network",
            title="A small network, compared with its explicit Hessian",
            text=(
                f"The same study of a network with {H.shape[0]} parameters. Its Hessian is small "
                "enough to be computed explicitly, by one matvec with each unit vector, and its "
                "eigenvalues by `numpy.linalg.eigvalsh`. The estimates do not use them.",
            ),
            code=_code("small_problem", seed),
            facts=_network_facts(H.shape[0], batch, seed),
        )
    )
    report.add_section(_training(model, batch, loss, "small-network"))
    settings = StudySettings(
        seed=seed, eigen_rtol=1e-6, num_probes=128, num_steps=100, compare=True, progress=progress
    )
    study = Study(H, "H", "small-network", settings)
    sections.add_sections(study.with_exact(to_host(H.to_dense())), report)


def _code(problem: str, seed: int) -> str:
    return (
        "import matfree as mf\n"
        "from matfree_torch import hessian\n"
        f"from matfree_torch.cli.demo import {problem}\n"
        f"H = hessian(*{problem}(seed={seed}))"
    )


def _network_facts(
    size: int, batch: tuple[Tensor, Tensor], seed: int
) -> tuple[tuple[str, str], ...]:
    images, _ = batch
    return (
        ("parameters", f"{size:,}, {str(images.dtype).removeprefix('torch.')}"),
        ("loss", f"mean cross-entropy over {len(images)} training images"),
        ("mode", "evaluation: batch norm uses its running statistics"),
        ("torch", f"{torch.__version__}, threads: {torch.get_num_threads()}"),
        ("seed", str(seed)),
    )


def _training(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss: Callable[..., Tensor], prefix: str
) -> Section:
    """The accuracy of the network, and some test images with its predictions."""
    images, labels = digits(batch[0].dtype)
    with torch.no_grad():
        predictions = model(images).argmax(dim=1)
        value = float(loss(model(batch[0]), batch[1]))
    correct = (predictions == labels).double()
    training = float(correct[:TRAINING_IMAGES].mean())
    test = float(correct[TRAINING_IMAGES:].mean())
    rows = (("training", TRAINING_IMAGES, training), ("test", len(labels) - TRAINING_IMAGES, test))
    columns = (Column("images"), Column("number"), Column("accuracy", 3))
    strip = np.concatenate(list(images[-_NUM_SHOWN_IMAGES:, 0].numpy()), axis=1)
    shown = predictions[-_NUM_SHOWN_IMAGES:].tolist()

    def draw(ax: Any) -> None:
        ax.imshow(strip, cmap="gray_r")
        ax.set_xticks(np.arange(_NUM_SHOWN_IMAGES) * 8 + 3.5, [str(label) for label in shown])
        ax.set_yticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)

    return Section(
        key="training",
        title="The network",
        text=(f"It was trained on {TRAINING_IMAGES} images; the loss is {value:.4g}.",),
        tables=(Table("Fraction of images classified correctly:", columns, rows),),
        figures=(
            Figure(
                f"{prefix}-digits",
                "Test images and the network's predictions",
                "Scans of 8 x 8 pixels that were not used for training.",
                f"{_NUM_SHOWN_IMAGES} scanned digits; the predictions below them are "
                f"{', '.join(map(str, shown))}.",
                draw,
                height=0.9,
            ),
        ),
        values={"loss": value, "training_accuracy": training, "test_accuracy": test},
    )
