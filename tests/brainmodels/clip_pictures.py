"""Folders of pictures for tests of clips."""

from PIL import Image


def pictures(folder, count, size=8, names="f{}.png"):
    """A folder of pictures: number k is grey of level 10 k."""
    folder.mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", (size, size), (10 * k,) * 3).save(folder / names.format(k))
    return folder
