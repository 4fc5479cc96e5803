"""The definition of a VECA block, written out again: explicit mask and rotation matrices, no shared code.

Shapes: B images, C cores, P patches, T = C + P, H heads, D head dim, E = H D.
"""

import math

import torch


def rotation_matrices(xy, head_dim, disabled):
    """(T, D, D) for positions (T, 2): x turns the first half of the channels, y the second, in pairs."""
    quarter = head_dim // 4
    matrices = torch.zeros(len(xy), head_dim, head_dim, dtype=torch.float64)
    for token, position in enumerate(xy.double()):
        for axis in range(2):
            for k in range(quarter):
                frequency = 0.0 if k >= quarter - disabled else 100.0 ** (-k / quarter)
                angle = 2 * math.pi * position[axis] * frequency
                c, s = torch.cos(angle), torch.sin(angle)
                a = axis * head_dim // 2 + 2 * k
                matrices[token, a, a], matrices[token, a, a + 1] = c, -s
                matrices[token, a + 1, a], matrices[token, a + 1, a + 1] = s, c
    return matrices


def block_mask(num_cores, tokens, core_self=True, patch_self=False):
    """(T, T), True where the row may attend to the column."""
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        for j in range(tokens):
            core_i, core_j = i < num_cores, j < num_cores
            if core_i and core_j:
                mask[i, j] = core_self
            elif core_i or core_j:
                mask[i, j] = True
            else:
                mask[i, j] = patch_self and i == j
    return mask


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def attention(x, w, num_heads, mask, rotations, prefix="attn."):
    """Dense masked attention with the weights `w` of a layer, x (B, T, E); returns output and weights."""
    q, k, v = (x @ w[prefix + "qkv.weight"].T + w[prefix + "qkv.bias"]).chunk(3, -1)
    head_dim = q.shape[-1] // num_heads
    q, k, v = (y.unflatten(-1, (num_heads, head_dim)) for y in (q, k, v))
    q = torch.einsum("tde,bthe->bthd", rotations, q)
    k = torch.einsum("tde,bthe->bthd", rotations, k)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(head_dim)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    out = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
    return out @ w[prefix + "proj.weight"].T + w[prefix + "proj.bias"], weights


def swiglu(x, w):
    hidden = x @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    half = hidden.shape[-1] // 2
    gate, value = hidden[..., :half], hidden[..., half:]
    return (gate * torch.sigmoid(gate) * value) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def block(x, w, num_heads, mask, rotations, eps=1e-5):
    """One block, x (B, T, E) in fp64, `w` its named parameters."""
    x = x + attention(layer_norm(x, w["norm1.weight"], w["norm1.bias"], eps), w, num_heads, mask, rotations)[0]
    return x + swiglu(layer_norm(x, w["norm2.weight"], w["norm2.bias"], eps), w)
