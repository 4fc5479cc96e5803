"""The cache: by id, whole or not at all, and never of another extractor or of other pictures."""

import itertools
import json
import os
import pickle
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from brainmodels.data import ArrayImages, StimulusSet
from brainmodels.errors import BrainDataError, IdError, LayoutError, NormalizationError
from brainmodels.features import Extractor, FeatureCache, Grid, Pixels, RandomConv
from brainmodels.features import cache as module
from brainmodels.features.cache import write_shard
from tests.processes import start

NUM = 23


def stimuli(num=NUM, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (num, 24, 24, 3), np.uint8)
    return StimulusSet([f"sim:{number:03d}" for number in range(num)], ArrayImages(pixels))


class Scaled(Extractor):
    """Mean colours times a factor; no tokens. What `drift` adds, the fingerprint does not know."""

    def __init__(self, factor=1.0, drift=0.0):
        super().__init__("scaled", 8)
        self.factor, self.drift = factor, drift

    def settings(self):
        return {"factor": self.factor}

    def _encode(self, images):
        return None, images.mean((2, 3)) * (self.factor + self.drift)


def quiet(cache, **options):
    return cache.extract(**({"batch_size": 4, "progress": False} | options))


def filled(root, **options):
    cache = FeatureCache(root, RandomConv(size=16), stimuli(), shard_images=8, **options)
    assert quiet(cache) == NUM
    return cache


def test_features_come_by_id_in_any_order(tmp_path):
    cache = filled(tmp_path)
    images = cache.stimuli.images(cache.stimuli.ids, 16)
    tokens, pooled = cache.extractor.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    order = np.random.default_rng(1).integers(0, NUM, 60)  # repeats too
    ids = cache.stimuli.ids[order]
    reopened = FeatureCache(tmp_path, RandomConv(size=16), stimuli())
    for kind, truth in (("tokens", tokens), ("pooled", pooled)):
        got = reopened.get(ids, kind)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, truth[order].numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(got, got.astype(np.float16).astype(np.float32))
    assert not np.allclose(pooled[0], pooled[1], rtol=1e-2)  # rows in a wrong order would have been seen
    assert len(reopened) == NUM
    assert reopened.ids.tolist() == stimuli().ids.tolist()
    assert reopened.get([], "tokens").shape == (0, *tokens.shape[1:])
    assert quiet(reopened) == 0


def test_ids_are_asked_for_in_parts_and_grow(tmp_path):
    cache = FeatureCache(tmp_path, Pixels(4), stimuli())
    ids = cache.stimuli.ids
    assert quiet(cache, ids=[*ids[5:9], ids[6]]) == 4
    before = cache.get(ids[5:9])
    assert quiet(cache, ids=ids[:12]) == 8
    np.testing.assert_array_equal(cache.get(ids[5:9]), before)
    np.testing.assert_allclose(cache.get(ids[:12]), cache.stimuli.images(ids[:12], 4).reshape(12, -1) / 255, atol=3e-4)


def test_unknown_and_missing_ids_are_named(tmp_path):
    cache = FeatureCache(tmp_path, Pixels(4), stimuli())
    with pytest.raises(IdError, match=r"got none of 2, such as sim:001; run extract"):
        cache.get(["sim:001", "sim:002"])
    quiet(cache, ids=["sim:001"])
    with pytest.raises(IdError, match=r"got none of 1, such as sim:002"):
        cache.get(["sim:001", "sim:002"])
    with pytest.raises(IdError, match=r"got 'sim:0013'; near: sim:013"):
        cache.get(["sim:001", "sim:0013"])
    with pytest.raises(IdError, match="near: sim:013"):
        quiet(cache, ids=["sim:0013"])
    with pytest.raises(BrainDataError, match="'tokens' or 'pooled'"):
        cache.get(["sim:001"], "patches")


def test_an_extractor_without_tokens_has_none(tmp_path):
    cache = FeatureCache(tmp_path, Scaled(), stimuli())
    assert cache.kinds == ()
    quiet(cache)
    assert cache.kinds == ("pooled",)
    with pytest.raises(BrainDataError, match="tokens of scaled, got none"):
        cache.get(["sim:001"], "tokens")


def write_until_killed(root):
    """Dies while it writes the third array of the third shard."""
    written, whole = itertools.count(1), module._write

    def write(path, array):
        whole(path, array)
        if next(written) == 11:
            with open(path, "r+b") as file:
                file.truncate(200)
            os.kill(os.getpid(), signal.SIGKILL)

    module._write = write
    quiet(FeatureCache(root, RandomConv(size=16), stimuli(), shard_images=4))


def write_together(root, stride):
    """Extract every so many images; two writers publish nothing before both have computed their first shard."""
    cache = FeatureCache(root, RandomConv(size=16), stimuli(), shard_images=4)

    def publish(*arguments, whole=cache._publish):
        (cache.folder.parent / f"computed-{stride}").touch()
        deadline = time.time() + 60
        while len(list(cache.folder.parent.glob("computed-*"))) < 2 and time.time() < deadline:
            time.sleep(0.01)
        whole(*arguments)

    cache._publish = publish
    quiet(cache, ids=cache.stimuli.ids[::stride])


def test_a_killed_writer_resumes_to_what_an_uninterrupted_one_gives(tmp_path):
    process = start(write_until_killed, tmp_path / "killed")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = FeatureCache(tmp_path / "killed", RandomConv(size=16), stimuli(), shard_images=4)
    assert cache.ids.tolist() == stimuli().ids[:8].tolist()  # two whole shards
    (left,) = cache.folder.glob(".partial-*")
    assert (left / "tokens.npy").stat().st_size == 200
    assert quiet(cache) == NUM - 8
    whole = FeatureCache(tmp_path / "whole", RandomConv(size=16), stimuli(), shard_images=4)
    quiet(whole)
    for kind in ("tokens", "pooled"):
        np.testing.assert_array_equal(cache.get(cache.stimuli.ids, kind), whole.get(whole.stimuli.ids, kind))
    assert left.is_dir()  # it might be another writer's, at work
    for path in (*left.iterdir(), left):
        os.utime(path, (0, 0))
    quiet(cache)
    assert not left.exists()


def test_two_parallel_writers(tmp_path):
    other = start(write_together, tmp_path / "two", 2)
    write_together(tmp_path / "two", 1)
    other.join()
    assert other.exitcode == 0
    caches = [FeatureCache(tmp_path / "two", RandomConv(size=16), stimuli()) for _ in range(2)]
    assert len(caches[0]) == NUM
    written = np.concatenate([np.load(path) for path in caches[0].folder.glob("*/ids.npy")])
    assert np.unique(written, return_counts=True)[1].max() == 2  # some images twice
    alone = filled(tmp_path / "one")
    for kind in ("tokens", "pooled"):
        first, second = (cache.get(cache.stimuli.ids, kind) for cache in caches)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, alone.get(alone.stimuli.ids, kind), rtol=2e-3, atol=1e-4)


def test_of_two_shards_with_one_image_the_first_by_name_counts(tmp_path):
    cache = FeatureCache(tmp_path, Scaled(), stimuli())
    quiet(cache, ids=["sim:001", "sim:002"])
    (shard,) = cache._shards
    values = {}
    for name, factor in (("000000-00000000", 2), ("000001-00000000", 3)):
        kinds = "ids", "pixels", "pooled"
        arrays = {kind: np.load(cache.folder / shard / f"{kind}.npy")[::-1] for kind in kinds}
        (cache.folder / name).mkdir()
        write_shard(cache.folder / name, arrays | {"pooled": arrays["pooled"] * np.float16(factor)})
        values[name] = np.load(cache.folder / name / "pooled.npy")[::-1]
    fresh = FeatureCache(tmp_path, Scaled(), stimuli())
    cache.refresh()  # this one has seen the others later
    for one in (fresh, cache):
        np.testing.assert_array_equal(one.get(["sim:001", "sim:002"]), values["000000-00000000"])


def test_changed_pictures_are_noticed(tmp_path):
    filled(tmp_path)
    images = stimuli().images(stimuli().ids, 24)
    images[7, 3, 3, 0] ^= 255
    changed = StimulusSet(stimuli().ids, ArrayImages(images))
    cache = FeatureCache(tmp_path, RandomConv(size=16), changed)
    with pytest.raises(IdError, match=r"expected the picture of sim:007"):
        quiet(cache)
    assert quiet(cache, ids=stimuli().ids[:7]) == 0
    assert quiet(cache, verify=False) == 0


def test_two_pictures_under_one_id_are_refused(tmp_path):
    root = tmp_path / "a"
    for path, seed in ((root, 0), (tmp_path / "b", 1)):
        quiet(FeatureCache(path, Scaled(), stimuli(seed=seed)))
    one, other = (FeatureCache(path, Scaled(), stimuli()) for path in (root, tmp_path / "b"))
    (shard,) = other._shards
    os.rename(other.folder / shard, one.folder / shard)
    with pytest.raises(IdError, match="expected one picture of sim:000, got two"):
        one.refresh()


def test_each_extractor_has_its_own_folder_and_others_are_refused(tmp_path):
    one, other = (FeatureCache(tmp_path, RandomConv(seed, 16), stimuli()) for seed in (0, 1))
    quiet(one)
    assert one.folder != other.folder
    with pytest.raises(IdError, match=f"beside it: {one.fingerprint} of random_conv"):
        other.get(["sim:000"])
    os.rename(one.folder, other.folder)
    with pytest.raises(LayoutError, match=f"got those of random_conv.*{one.fingerprint}"):
        FeatureCache(tmp_path, RandomConv(1, 16), stimuli())
    (other.folder / "meta.json").unlink()
    with pytest.raises(LayoutError, match=r"meta\.json"):
        FeatureCache(tmp_path, RandomConv(1, 16), stimuli())


def test_pictures_read_at_another_size_are_other_features(tmp_path):
    plain, large = (FeatureCache(tmp_path, Grid(), stimuli(), size) for size in (None, 24))
    quiet(plain)
    assert large.folder.name == f"{plain.folder.name}-24px"
    assert len(large) == 0


@pytest.mark.parametrize(("factor", "largest"), [(1e6, "e.05"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_what_fp16_cannot_hold_is_an_error(tmp_path, factor, largest):
    cache = FeatureCache(tmp_path, Scaled(), stimuli())
    quiet(cache, ids=["sim:000"])
    cache.extractor._encode = lambda images: (None, images.mean((2, 3)) * factor)
    cache._begin = lambda: None
    with pytest.raises(NormalizationError, match=rf"at most 65504.*{largest}.* for sim:003"):
        quiet(cache, ids=["sim:000", "sim:003"])
    assert cache.ids.tolist() == ["sim:000"]


def test_an_extractor_that_computes_other_numbers_is_noticed(tmp_path):
    quiet(FeatureCache(tmp_path, Scaled(), stimuli()), ids=["sim:000"])
    with pytest.raises(BrainDataError, match=r"relative difference of 0\.1 .* another root"):
        quiet(FeatureCache(tmp_path, Scaled(drift=0.1), stimuli()))
    assert quiet(FeatureCache(tmp_path, Scaled(drift=0.001), stimuli())) == NUM - 1  # as another device might


def test_a_truncated_file_is_named(tmp_path):
    cache = filled(tmp_path)
    shard = min(cache._shards)
    with (cache.folder / shard / "tokens.npy").open("r+b") as file:
        file.truncate(300)
    fresh = FeatureCache(tmp_path, RandomConv(size=16), stimuli())
    with pytest.raises(LayoutError, match=rf"{shard}.tokens\.npy"):
        fresh.get(fresh.stimuli.ids, "tokens")
    assert len(fresh.get(fresh.stimuli.ids)) == NUM


@pytest.mark.parametrize("name", ["tokens.npy", "pooled.npy", "ids.npy", "pixels.npy", "crc32.json"])
def test_a_flipped_bit_is_named_and_other_rows_are_read(tmp_path, name):
    cache = filled(tmp_path)
    shard, ids = min(cache._shards), cache.stimuli.ids
    path = cache.folder / shard / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 4  # in the last row, and the last sum
    path.write_bytes(content)
    with pytest.raises(LayoutError, match=rf"{shard}.{name}|row \d of .*{shard}"):
        fresh = FeatureCache(tmp_path, RandomConv(size=16), stimuli())
        for kind in ("tokens", "pooled"):
            np.testing.assert_array_equal(fresh.get(ids[8:], kind), cache.get(ids[8:], kind))
            np.testing.assert_array_equal(fresh.get(ids[:7], kind), cache.get(ids[:7], kind))
        fresh.get(ids[7:8], "tokens"), fresh.get(ids[7:8], "pooled")
    shutil.rmtree(cache.folder / shard)
    cache.refresh()
    assert quiet(cache) == 8


def test_meta_says_what_made_the_features_and_nothing_is_pickled(tmp_path):
    cache = filled(tmp_path)
    meta = json.loads((cache.folder / "meta.json").read_text())
    assert meta["config"] == json.loads(cache.extractor.config())
    assert "not comparable" in meta["note"]
    files = sorted(path.name for path in cache.folder.rglob("*") if path.is_file())
    assert set(files) == {"meta.json", "crc32.json", "ids.npy", "pixels.npy", "tokens.npy", "pooled.npy"}
    for path in cache.folder.rglob("*.npy"):
        np.load(path, allow_pickle=False)


def test_a_cache_travels_without_its_memory_maps(tmp_path):
    cache = filled(tmp_path)
    tokens = cache.get(cache.ids, "tokens")
    assert isinstance(cache._array(min(cache._shards), "tokens"), np.memmap)
    sent = pickle.loads(pickle.dumps(cache))
    assert not sent._arrays
    np.testing.assert_array_equal(sent.get(sent.ids, "tokens"), tokens)
