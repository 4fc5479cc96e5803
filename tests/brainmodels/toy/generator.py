"""A generator without networks, whose latents are linear and whose outputs are known: pixels and one-hot words."""

import numpy as np

from brainmodels.systems.unibrain import Latents


class ToyGenerator:
    """Pictures of grid x grid colours, captions of at most `length` words.

    The latents are the colours and the one-hot words. Denoising moves them, by the strength, to what the contexts say:
    the image context knows the colours alone, the text context the words alone.
    """

    name, unseen = "toy", "seen:"
    outputs: tuple[str, ...] = ("images", "captions")

    def __init__(self, vocabulary, length, grid=4, fingerprint="toytoytoy000"):
        self.words, self.length, self.grid, self.fingerprint = sorted(vocabulary), length, grid, fingerprint

    @property
    def pixels(self):
        return 4 * self.grid

    @property
    def shapes(self):
        text = self.length, len(self.words) + 1
        return {
            "z_image": (3, self.grid, self.grid),
            "z_text": (text[0] * text[1],),
            "c_image": (self.grid**2, 3),
            "c_text": text,
        }

    def latents(self, images=None, captions=None):
        found = {}
        if images is not None:
            cells = images.reshape(len(images), self.grid, 4, self.grid, 4, 3).astype(np.float32).mean((2, 4)) / 255
            found |= {"z_image": cells.transpose(0, 3, 1, 2), "c_image": cells.reshape(len(images), -1, 3)}
        if captions is not None:
            codes = np.zeros((len(captions), *self.shapes["c_text"]), np.float32)
            for row, text in enumerate(captions):
                said = text.replace(",", "").split()
                for place in range(self.length):
                    codes[row, place, 1 + self.words.index(said[place]) if place < len(said) else 0] = 1
            found |= {"z_text": codes.reshape(len(captions), -1), "c_text": codes}
        return Latents(**found, generator=self.fingerprint)

    def denoise(self, kind, z, c_image, c_text, *, sampling, seeds):
        shape = self.shapes[f"z_{kind}"]
        told = np.zeros((len(seeds), *shape), np.float32)
        if kind == "image" and c_image is not None:
            told += sampling.image_weight * c_image.transpose(0, 2, 1).reshape(told.shape)
        if kind == "text" and c_text is not None:
            told += (1 - sampling.image_weight) * c_text.reshape(told.shape)
        if not np.isfinite(told).all():
            raise FloatingPointError("expected finite latents, got others in step 0")
        strength = 1.0 if z is None else sampling.strength
        noise = np.stack([np.random.default_rng(seed).normal(size=shape) for seed in seeds]) * 0.01 * strength
        return (strength * told + (0 if z is None else (1 - strength) * z) + noise).astype(np.float32)

    def draw(self, z):
        return np.repeat(np.repeat(np.clip(z, 0, 1), 4, 2), 4, 3).astype(np.float32)

    def write(self, z, *, sampling="greedy", temperature=1.0, seeds=None, cleaning="none"):
        best = z.reshape(len(z), *self.shapes["c_text"]).argmax(-1)
        return [" ".join(self.words[number - 1] for number in row if number) for row in best]
