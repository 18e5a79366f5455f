"""ResNet-18, torchvision's, on log-mel, on frames and on both: the usual encoders of studies of balanced learning.

There (OGM-GE, Peng et al., CVPR 2022, and after it; CREMA-D, Kinetics-Sounds) log-mel is a picture of one channel and a
video is a few frames, each read by itself, whose features are averaged.
"""

from collections import OrderedDict
from importlib import import_module

from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.models.mmt import TwoStreams
from mmtlib.models.ops import Grid

RESNET = {"resnet18_audio": {}, "resnet18_video": {"frames": 4}, "resnet18_av": {"frames": 4}}
Tokens = tuple[Float[Tensor, "batch tokens 512"], Grid]


class ResNetStream(nn.Sequential):
    """ResNet-18 (He et al., CVPR 2016) up to its last feature map: images (B, C, H, W) -> its places and their grid.

    Weights are drawn anew; their names are torchvision's. The statistics of BatchNorm are those of the clips that one
    process reads at a time. Clips of zeros, whose modality is absent, are among them: acceptable, as they are few.
    """

    dim = 512

    def __init__(self, in_channels: int):
        net = import_module("torchvision.models").resnet18()  # slow to import: no other model waits for it
        if in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        super().__init__(OrderedDict([*net.named_children()][:-2]))  # all but avgpool and fc

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Tokens:
        if self.training and x.shape[0] == 1 and max(x.shape[2:]) <= 32:  # the last map has one place for each 32 x 32
            raise ValueError(f"BatchNorm cannot train on one image of {tuple(x.shape[2:])}; give it two clips or more")
        x = super().forward(x)
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])

    def features(self, tokens: Float[Tensor, "batch tokens 512"]) -> Float[Tensor, "batch 512"]:
        """One vector for a clip: the mean over all places, torchvision's average pooling."""
        return tokens.mean(1)


class FrameStream(ResNetStream):
    """The same of `frames` frames, evenly spaced out of those given (of fewer all), each by itself."""

    def __init__(self, frames: int):
        super().__init__(3)
        if frames < 1:
            raise ValueError(f"frames {frames} must be at least 1")
        self.frames = frames

    def forward(self, x: Float[Tensor, "batch 3 frames height width"]) -> Tokens:
        given = x.shape[2]
        count = min(self.frames, given)
        places = [(2 * index + 1) * given // (2 * count) for index in range(count)]  # the middles of equal parts
        tokens, grid = super().forward(x[:, :, places].transpose(1, 2).flatten(0, 1))
        return tokens.unflatten(0, (-1, count)).flatten(1, 2), (count, *grid)


class ResNetAV(TwoStreams):
    """ResNet-18 on log-mel and on frames with late fusion: the average of the two streams' logits."""

    projects = False

    def __init__(self, num_classes: int, *, frames: int, **options):
        audio, video = ResNetStream(1), FrameStream(frames)
        super().__init__(audio, video, num_classes, dim=ResNetStream.dim, fusion="late", **options)
        self.heads.audio_norm, self.heads.video_norm = nn.Identity(), nn.Identity()  # ResNet has none before its head
