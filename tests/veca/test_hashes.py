import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from veca.hashes import file_digest, hex_digest, json_digest, weights_hash


@pytest.mark.parametrize(
    "part",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.float16(0.5),
        np.array(["a", "öl"]),
        np.empty((0, 3)),
        np.array([True, False])[::-1],
    ],
)
def test_arrays_are_their_bytes_in_c_order(part):
    assert hex_digest([part]) == hashlib.sha256(part.tobytes()).hexdigest()


def test_parts_follow_each_other():
    tensor = torch.arange(6.0).view(2, 3).T
    whole = "ö".encode() + b"\0" + tensor.numpy().tobytes()
    assert hex_digest(iter(["ö", b"\0", tensor]), 8) == hashlib.sha256(whole).hexdigest()[:8]
    other = hex_digest(["ö", b"\0", tensor], hasher=hashlib.blake2b(digest_size=16))
    assert other == hashlib.blake2b(whole, digest_size=16).hexdigest()


def test_json_has_sorted_keys_and_two_kinds_of_separators():
    for compact, text in ((True, '[{"a":[1,2],"b":null}]'), (False, '[{"a": [1, 2], "b": null}]')):
        content = [{"b": None, "a": (1, 2)}]
        assert json.loads(text) == json.loads(json.dumps(content))
        assert json_digest(content, compact) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_files(tmp_path):
    (tmp_path / "a").write_bytes(b"1234")
    digest = "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4"  # sha256sum of 1234
    assert file_digest(tmp_path / "a") == digest


def test_weights_count_with_name_type_shape_and_order_of_names():
    module = nn.Linear(2, 1).bfloat16()
    nn.init.constant_(module.weight, 0.5)
    nn.init.constant_(module.bias, 0.25)
    half, quarter = b"\x00\x3f", b"\x80\x3e"
    text = b"bias torch.bfloat16 (1,);" + quarter + b"weight torch.bfloat16 (1, 2);" + half + half
    assert weights_hash(module) == hashlib.sha256(text).hexdigest()
