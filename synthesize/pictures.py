"""The pictures of a run: a grid of generated images and the training curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dpmepf.shared.output_file import replacing
from dpmepf.shared.precision import autocast
from dpmepf.synthesize.generator import Generator

PREVIEW_FILE = "preview.png"
CURVE_FILE = "curve.png"
COLUMNS = 12
MOST_LABELLED_ROWS = 24
MOST_IMAGES = 720
SMALLEST_CELL = 56  # pixels; smaller images are shown enlarged
MARGIN = 2
LONGEST_LABEL = 16


def preview_classes(class_count: int) -> np.ndarray:
    """Return the class of each image of the preview: a row for each class, or a part of a row if there are many."""
    if class_count == 1:
        return np.zeros(8 * COLUMNS, dtype=np.int64)
    of_each = COLUMNS if class_count <= MOST_LABELLED_ROWS else 3
    return np.repeat(np.arange(class_count), of_each)[:MOST_IMAGES]


@torch.no_grad()
def preview_images(generator: Generator) -> np.ndarray:
    """Draw uint8 N×C×R×R images of `preview_classes`, always of the same latent vectors."""
    classes = preview_classes(generator.configuration.class_count)
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(len(classes), generator.configuration.latent_dimension, generator=random)
    device = next(generator.parameters()).device
    parts = []
    with autocast(device):
        for start in range(0, len(classes), 120):
            part = slice(start, start + 120)
            parts.append(generator(latents[part].to(device), torch.from_numpy(classes[part]).to(device)).cpu())
    return (torch.cat(parts) * 255).round().to(torch.uint8).numpy()


def write_preview(folder: Path, images: np.ndarray, class_names: Sequence[str]) -> None:
    """Write `preview.png` of uint8 N×C×R×R images of `preview_classes`."""
    pixels = images.transpose(0, 2, 3, 1)  # N x R x R x C
    labels = class_names if 1 < len(class_names) <= MOST_LABELLED_ROWS else ()
    with replacing(folder / PREVIEW_FILE) as path:
        _grid(pixels, labels).save(path, format="PNG")


def write_curve(folder: Path, losses: Sequence[float]) -> None:
    """Write `curve.png`: the loss of every step and its running mean."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = np.asarray(losses, dtype=np.float64)
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, color="#9db4d0", linewidth=0.8, label="each step")
    window = max(1, len(values) // 30)
    if len(values) > window > 1:
        running = np.convolve(values, np.full(window, 1 / window), mode="valid")
        axes.plot(steps[window - 1 :], running, color="#1f4e8c", linewidth=1.8, label=f"mean of {window} steps")
    settled = values[len(values) // 20 :]  # the first steps would flatten the rest
    if len(settled) > 1 and np.ptp(settled) > 0:
        margin = 0.05 * np.ptp(settled)
        axes.set_ylim(settled.min() - margin, settled.max() + margin)
    axes.set_xlabel("step")
    axes.set_ylabel("squared distance of mean features")
    axes.set_title("Training: unbiased estimate, expected noise of the release subtracted", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    with replacing(folder / CURVE_FILE) as path:
        figure.savefig(path, dpi=120, format="png")


def _grid(pixels: np.ndarray, labels: Sequence[str]) -> Image.Image:
    """Lay out N×R×R×C images in rows of `COLUMNS`, each row behind its label."""
    count, side, _, channels = pixels.shape
    scale = max(1, -(-SMALLEST_CELL // side))
    cell = side * scale + MARGIN
    font = ImageFont.load_default(size=14)
    texts = [text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…" for text in labels]
    gutter = int(max(font.getlength(text) for text in texts)) + 14 if texts else MARGIN
    rows = -(-count // COLUMNS)
    picture = Image.new("RGB", (gutter + COLUMNS * cell, rows * cell + MARGIN), "white")
    for index, image in enumerate(pixels):
        tile = Image.fromarray(image[..., 0] if channels == 1 else image)
        row, column = divmod(index, COLUMNS)
        enlarged = tile.resize((side * scale, side * scale), Image.Resampling.NEAREST)
        picture.paste(enlarged, (gutter + column * cell, MARGIN + row * cell))
    draw = ImageDraw.Draw(picture)
    for row, text in enumerate(texts):
        draw.text((gutter - 8, MARGIN + (row + 0.5) * cell), text, fill="black", font=font, anchor="rm")
    return picture
