"""Images to run on: photographs that come with other packages."""

from .photographs import Photograph, imagenet_normalize, list_photographs, load_photograph, photograph

__all__ = ["Photograph", "imagenet_normalize", "list_photographs", "load_photograph", "photograph"]
