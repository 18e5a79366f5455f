"""The models. The method is in `multiscale`, `fusion` and `mmt` (and mmtlib.losses), what makes it quick in `ops`."""

from mmtlib.models.base import AVModel, AVOutput, StreamClassifier
from mmtlib.models.baselines import MBT, ASTClassifier
from mmtlib.models.build import MODALITY, build_model, resolved
from mmtlib.models.hub import from_pretrained
from mmtlib.models.mmt import MMT
from mmtlib.models.multiscale import MultiscaleClassifier
from mmtlib.models.mvit import load_torchvision_mvit
from mmtlib.models.published import load_timm_mvit, load_timm_peer
from mmtlib.models.resnet import ResNetAV
