"""Views of images in plain torch: crop, flip, small affine maps, colour, blur and noise, a batch at a time.

Paper: SimCLR, Chen et al., arXiv 2002.05709, appendix A, whose ImageNet values are the defaults. Departures: the flip is
off unless asked for (digits and letters have a handedness); crop, flip, shift and rotation are one resampling, not several;
the four colour changes come in one random order a call, not an image; the blur's kernel reaches to three times the largest
sigma (SimCLR: a tenth of the image), so that it does not vanish on small images. Sizes of crops are real numbers, not pixels.

Every draw comes from the generator that is passed, on its device, so that a CPU generator gives the same views anywhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Generator, Tensor

from efface.errors import InputError
from efface.run.settings import Settings

Range = tuple[float, float]
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
CROP_TRIES = 10


class ViewConfig(Settings):
    """What a view changes. The defaults are SimCLR's for ImageNet, without its flip."""

    size: int | None = Field(
        None, ge=1, description="side of the views in pixels; default: height and width of the images"
    )
    crop_area: Range = Field((0.08, 1.0), description="share of the area that a crop keeps; 1, 1: no crop")
    crop_ratio: Range = Field((3 / 4, 4 / 3), description="width over height of a crop")
    flip: float = Field(0.0, ge=0, le=1, description="chance of a horizontal flip; SimCLR: 0.5")
    shift: float = Field(0.0, ge=0, le=1, description="largest shift, as a share of the image's width and height")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation in degrees")
    jitter: float = Field(0.8, ge=0, le=1, description="chance that an image's colours change")
    brightness: float = Field(0.8, ge=0, le=1, description="largest change of the brightness factor from 1")
    contrast: float = Field(0.8, ge=0, le=1, description="largest change of the contrast factor from 1")
    saturation: float = Field(0.8, ge=0, le=1, description="largest change of the saturation factor from 1")
    hue: float = Field(0.2, ge=0, le=0.5, description="largest turn of the hue, as a share of the circle")
    grey: float = Field(0.2, ge=0, le=1, description="chance that an image loses its colours")
    blur: float = Field(0.5, ge=0, le=1, description="chance of a Gaussian blur")
    blur_sigma: Range = Field((0.1, 2.0), description="its standard deviation in pixels of the view")
    noise: float = Field(0.0, ge=0, description="standard deviation of Gaussian noise; images are in [0, 1]")

    @model_validator(mode="after")
    def _ordered(self) -> ViewConfig:
        for name in ("crop_area", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is two positive numbers in rising order")
        if self.crop_area[1] > 1:
            raise ValueError("crop_area is at most 1")
        return self

    @classmethod
    def none(cls) -> ViewConfig:
        """The view that is the image itself."""
        return cls(crop_area=(1.0, 1.0), jitter=0.0, grey=0.0, blur=0.0)

    @property
    def crops(self) -> bool:
        """Whether a crop may be smaller than the image."""
        return self.crop_area[0] < 1


class ImageViews:
    """`views(images, generator)` -> (views [B, C, h, w] in [0, 1], boxes [B, 4])."""

    def __init__(self, config: ViewConfig) -> None:
        self.config = config

    def __call__(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """One view of each image.

        Args:
            images: [B, C, H, W] float32 or float64 in [0, 1]; C is 3, or 1 for greyscale.
            generator: every draw comes from it.

        Returns:
            The views, and for each the box (x0, y0, x1, y1) of the image that it shows, in pixels of the image counted
            from its edges: the whole image is (0, 0, W, H). Column s of w shows x = x0 + (s + 0.5) (x1 - x0) / w. A flip
            swaps x0 and x1; a shift may move a box over the edge, where the border's pixels go on. With `rotate` the box
            is the one before the rotation about its centre.

        Raises:
            InputError: shape, type or range.
        """
        _check(images)
        config = self.config
        draw = Draw(generator, images)
        views, boxes = _geometry(images, config, draw)
        if config.jitter > 0:
            views = torch.where(draw.chance(config.jitter), _jitter(views, config, draw), views)
        if config.grey > 0:
            views = torch.where(draw.chance(config.grey), luma(views).expand_as(views), views)
        if config.blur > 0:
            sigma = draw.uniform(*config.blur_sigma, len(views))
            views = torch.where(draw.chance(config.blur), blurred(views, sigma, config.blur_sigma[1]), views)
        if config.noise > 0:
            views = (views + config.noise * draw.normal(*views.shape)).clamp(0, 1)
        return views, boxes


class Draw:
    """Random numbers from one generator, of the images' type and on their device.

    Args:
        generator: draws happen on its device, in float64.
        like: images [B, C, H, W].
    """

    def __init__(self, generator: Generator, like: Tensor) -> None:
        self.generator, self.like = generator, like

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in [low, high)."""
        found = torch.rand(*shape, generator=self.generator, device=self.generator.device, dtype=torch.float64)
        return (low + (high - low) * found).to(self.like)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        found = torch.randn(*shape, generator=self.generator, device=self.generator.device, dtype=torch.float64)
        return found.to(self.like)

    def chance(self, p: float) -> Tensor:
        """True with chance p, boolean [B, 1, 1, 1]."""
        found = torch.rand(len(self.like), generator=self.generator, device=self.generator.device, dtype=torch.float64)
        return (found < p).to(self.like.device).view(-1, 1, 1, 1)

    def order(self, n: int) -> list[int]:
        """A permutation of n things."""
        found: list[int] = torch.randperm(n, generator=self.generator, device=self.generator.device).tolist()
        return found


def crop_boxes(count: int, height: int, width: int, area: Range, ratio: Range, draw: Draw) -> Tensor:
    """Boxes (x0, y0, x1, y1) [B, 4] inside the image: area uniform, ratio log-uniform, place uniform.

    Of ten draws the first that fits is taken; if none does, the first is shrunk until it fits, its ratio kept.
    """
    share = draw.uniform(*area, CROP_TRIES, count) * height * width
    shape = draw.uniform(math.log(ratio[0]), math.log(ratio[1]), CROP_TRIES, count).exp()
    w, h = (share * shape).sqrt(), (share / shape).sqrt()
    first = ((w <= width) & (h <= height)).int().argmax(0, keepdim=True)  # 0 where none fits
    w, h = w.gather(0, first)[0], h.gather(0, first)[0]
    shrink = torch.minimum(width / w, height / h).clamp(max=1)
    w, h = w * shrink, h * shrink
    x0, y0 = draw.uniform(0, 1, count) * (width - w), draw.uniform(0, 1, count) * (height - h)
    return torch.stack([x0, y0, x0 + w, y0 + h], 1)


def _geometry(images: Tensor, config: ViewConfig, draw: Draw) -> tuple[Tensor, Tensor]:
    count, _, height, width = images.shape
    side = images.new_tensor([width, height, width, height])
    boxes = (side * images.new_tensor([0, 0, 1, 1])).repeat(count, 1)
    if config.crops:
        boxes = crop_boxes(count, height, width, config.crop_area, config.crop_ratio, draw)
    if config.shift > 0:
        boxes = boxes + draw.uniform(-config.shift, config.shift, count, 2).repeat(1, 2) * side
    if config.flip > 0:
        boxes = torch.where(draw.chance(config.flip).view(-1, 1), boxes[:, [2, 1, 0, 3]], boxes)
    angles = images.new_zeros(count)
    if config.rotate > 0:
        angles = draw.uniform(-math.radians(config.rotate), math.radians(config.rotate), count)
    size = (config.size or height, config.size or width)
    if size == (height, width) and not (config.crops or config.shift or config.flip or config.rotate):
        return images, boxes
    return resampled(images, boxes, angles, size), boxes


def resampled(images: Tensor, boxes: Tensor, angles: Tensor, size: tuple[int, int]) -> Tensor:
    """What the boxes show, turned by `angles` [B] radians about their centres, as [B, C, *size]; bilinear.

    Where the images are at least twice as large as the views, up to 4 x 4 points a pixel are averaged, against aliasing.
    Their number depends on the sizes only, so that a view never depends on the other images of the batch.
    """
    height, width = images.shape[2:]
    x0, y0, x1, y1 = boxes.unbind(1)
    cosine, sine = angles.cos(), angles.sin()
    across, down = x1 - x0, y1 - y0
    # from the view's [-1, 1] to the image's: turned in pixels, not in shares of the sides
    theta = torch.stack(
        [
            torch.stack([cosine * across / width, -sine * down / width, (x0 + x1) / width - 1], 1),
            torch.stack([sine * across / height, cosine * down / height, (y0 + y1) / height - 1], 1),
        ],
        1,
    )
    fine = max(1, min(4, height // size[0], width // size[1]))
    shape = [len(images), images.shape[1], size[0] * fine, size[1] * fine]
    grid = F.affine_grid(theta, shape, align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (F.avg_pool2d(views, fine) if fine > 1 else views).clamp(0, 1)


def luma(images: Tensor) -> Tensor:
    """Brightness [B, 1, H, W] of images [B, C, H, W]."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def turned_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Images [B, 3, H, W] with the hue moved by `turn` [B, 1, 1], a share of the circle; value and saturation stay."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    d = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sector = torch.where(
        value == red, (green - blue) / d, torch.where(value == green, (blue - red) / d + 2, (red - green) / d + 4)
    )
    place = sector + 6 * turn
    found = []
    for n in (5, 3, 1):  # red, green, blue
        k = (n + place) % 6
        found.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(found, 1)


def blurred(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Images [B, C, H, W] under Gaussians of `sigma` [B] pixels; kernels reach to 3 * `largest`, borders are mirrored."""
    count, channels, height, width = images.shape
    reach = min(math.ceil(3 * largest), height - 1, width - 1)
    steps = torch.arange(-reach, reach + 1).to(images)
    kernel = torch.softmax(-(steps**2) / (2 * sigma[:, None] ** 2), 1).repeat_interleave(channels, 0)
    groups = count * channels
    flat = F.pad(images.reshape(1, groups, height, width), (reach,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=groups)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=groups)
    return flat.view_as(images).clamp(0, 1)


def _jitter(images: Tensor, config: ViewConfig, draw: Draw) -> Tensor:
    """Brightness, contrast, saturation and hue in a random order."""

    def factor(strength: float) -> Tensor:
        return draw.uniform(1 - strength, 1 + strength, len(images), 1, 1, 1)

    for change in draw.order(4):
        if change == 0:
            images = _blend(torch.zeros_like(images), images, factor(config.brightness))
        elif change == 1:
            images = _blend(luma(images).mean((2, 3), keepdim=True), images, factor(config.contrast))
        elif change == 2:
            images = _blend(luma(images), images, factor(config.saturation))
        elif images.shape[1] == 3:
            images = turned_hue(images, draw.uniform(-config.hue, config.hue, len(images), 1, 1)).clamp(0, 1)
    return images


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return (base + factor * (images - base)).clamp(0, 1)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(f"images of shape {list(images.shape)}", "[B, 3, H, W], or [B, 1, H, W] for greyscale")
    if images.dtype not in (torch.float32, torch.float64):
        raise InputError(f"images of type {images.dtype}", "float32 in [0, 1]", "divide bytes by 255")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"images with values from {low:g} to {high:g}", "[0, 1]", "give pictures before any normalisation"
        )
