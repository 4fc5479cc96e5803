"""Images to train and run on: drawn scenes, image files, and photographs that come with other packages.

    Scenes(10_000, size=128)              # drawn, with every label known; nothing to download
    Images("photos/train", training_transform(256))
    Photographs(512)

All three are map-style data sets. Their samples are dicts, which `torch.utils.data.default_collate` batches:

    image    (3, height, width) fp32; in [0, 1], unless a transform normalises
    index    number of the sample in its data set
    name     name of the photograph, or of the file as listed (Images, Photographs)
    label    class number; for a scene, the main object's shape in `SHAPES` (Scenes; Images where known)
    color    class number of the main object's colour in `COLORS` (Scenes)
    mask     (height, width) int64; 0 background, 1 + class number of the shape (Scenes)
    caption  description in words (Scenes, Photographs; Images where known)

All samples of a data set have the same keys.
"""

from .images import BadImage, Images, inference_transform, load_image, training_transform, upright_rgb
from .photographs import Photograph, Photographs, imagenet_normalize, list_photographs, load_photograph, photograph
from .scenes import COLORS, SHAPES, Scene, Scenes, patch_labels, render_scenes, sample_scene

__all__ = [
    "COLORS",
    "SHAPES",
    "BadImage",
    "Images",
    "Photograph",
    "Photographs",
    "Scene",
    "Scenes",
    "imagenet_normalize",
    "inference_transform",
    "list_photographs",
    "load_image",
    "load_photograph",
    "patch_labels",
    "photograph",
    "render_scenes",
    "sample_scene",
    "training_transform",
    "upright_rgb",
]
