"""The drawn face as tables: control points with depth, and what expression, identity, jaw and pose do to them.

x points to the viewer's right, y up and z towards the viewer. The origin is the middle of the head. The head is about
2.2 units high, and a picture shows 3 units.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["HINGE", "IDENTITY", "NAMED", "NECK", "REGIONS", "Face", "build_face"]

NAMED = (
    "brow_raise",
    "brow_furrow",
    "lid_wide",
    "cheek_raise",
    "nose_wrinkle",
    "corner_up",
    "corner_down",
    "stretch",
    "round",
    "upper_raise",
    "lower_drop",
    "press",
)
"""Components of an expression, in order. The last seven move the lips."""

IDENTITY = (
    "face_width",
    "face_length",
    "skin_tone",
    "hair_color",
    "hair_length",
    "fringe",
    "eyes",
    "surroundings",
)
"""Identity numbers, in order, each in [-1, 1].

`eyes` sets the colour of the irises and the spacing of the eyes. `surroundings` sets background and clothes.
"""

HINGE = (0.0, -0.2, -0.1)
"""Point that the jaw turns about."""
NECK = (0.0, -0.75, -0.2)
"""Point that the head turns about."""

REGIONS = {
    "brow_raise": ("brow", "furrow", "forehead"),
    "brow_furrow": ("brow", "furrow", "forehead"),
    "lid_wide": ("lid_upper", "lid_lower", "crease"),
    "cheek_raise": ("lid_lower", "cheek", "bag"),
    "nose_wrinkle": ("nose", "nostril", "wrinkle"),
    **{name: ("lips", "fold") for name in NAMED[5:]},
}
"""Groups of points that each component may move."""

_SPOTS = np.linspace(-1, 1, 7)  # places along the lips, corners included


class Face(NamedTuple):
    """Tables of the drawn face.

    Attributes:
        template: (V, 3) Points at rest.
        exp: (V, 3, 12) Displacement for each named component.
        identity: (V, 3, 8) Displacement for each identity number.
        jaw: (V,) Share of the jaw's turn that a point follows, 0 to 1.
        pose: (V,) Share of the head's turn that a point follows, 0 to 1.
        groups: Rows of each group of points.
    """

    template: np.ndarray
    exp: np.ndarray
    identity: np.ndarray
    jaw: np.ndarray
    pose: np.ndarray
    groups: dict[str, slice]

    def of(self, region: str) -> list[int]:
        """Rows of all groups whose name is the region's, or is it with a side such as "brow_left"."""
        rows = [range(part.start, part.stop) for name, part in self.groups.items() if name.startswith(region)]
        return [row for part in rows for row in part]


def build_face() -> Face:
    """The tables, fp64."""
    styles, parts = _outlines()
    parts = parts | _upper_face() | _mouth()
    rows, start = {}, 0
    for name, points in parts.items():
        rows[name] = slice(start, start + len(points))
        start += len(points)
    template = np.concatenate(list(parts.values()))
    face = Face(
        template,
        np.zeros((start, 3, len(NAMED))),
        np.zeros((start, 3, len(IDENTITY))),
        np.concatenate([_jaw_share(name, points) for name, points in parts.items()]),
        np.concatenate([_pose_share(name, points) for name, points in parts.items()]),
        rows,
    )
    _move_upper(face)
    _move_lips(face)
    _move_identity(face, styles)
    return face


def _both(name: str, points: np.ndarray) -> dict[str, np.ndarray]:
    """A part of the right side and its mirror image."""
    return {f"{name}_right": points, f"{name}_left": points * (-1, 1, 1)}


def _ring(x: float, y: float, z: float, rx: float, ry: float, count: int) -> np.ndarray:
    turn = np.arange(count) * 2 * np.pi / count
    return np.stack([x + rx * np.sin(turn), y + ry * np.cos(turn), np.full(count, z)], 1)


def _mirrored(right: list[tuple[float, float, float]]) -> np.ndarray:
    """A closed outline from its right half, top to bottom. The first and the last point lie on the middle line."""
    half = np.array(right)
    return np.concatenate([half, half[-2:0:-1] * (-1, 1, 1)])


def _outlines() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Shifts of long hair and of a full fringe, and the outlines at rest: hair, clothes, neck, ears and face."""
    head = [
        (0, 1.1, 0.1), (0.3, 1.06, 0.1), (0.56, 0.93, 0.1), (0.74, 0.7, 0.1), (0.82, 0.4, 0.1), (0.83, 0.1, 0.1),
        (0.8, -0.2, 0.1), (0.73, -0.49, 0.15), (0.57, -0.75, 0.25), (0.37, -0.94, 0.4), (0.17, -1.05, 0.5),
        (0, -1.07, 0.55),
    ]  # fmt: skip
    back = [
        (0, 1.3, -0.2), (0.4, 1.24, -0.2), (0.72, 1.03, -0.2), (0.92, 0.7, -0.2), (0.98, 0.3, -0.2),
        (0.99, -0.1, -0.2), (0.97, -0.42, -0.2), (0.9, -0.7, -0.2), (0.62, -0.83, -0.2), (0.3, -0.86, -0.2),
        (0, -0.86, -0.2),
    ]  # fmt: skip
    long = [
        (0, 0, 0), (0, 0.01, 0), (0.0, 0.0, 0), (0.03, -0.03, 0), (0.06, -0.1, 0), (0.1, -0.24, 0), (0.13, -0.45, 0),
        (0.14, -0.62, 0), (0.14, -0.66, 0), (0.1, -0.66, 0), (0, -0.66, 0),
    ]  # fmt: skip
    front = [
        (0, 1.29, 0.2), (0.4, 1.23, 0.2), (0.72, 1.03, 0.2), (0.92, 0.68, 0.15), (0.96, 0.32, 0.1), (0.9, -0.02, 0.1),
        (0.83, -0.2, 0.15), (0.79, 0.16, 0.3), (0.73, 0.44, 0.45), (0.52, 0.68, 0.6), (0.3, 0.8, 0.68),
        (0.05, 0.68, 0.68), (-0.25, 0.58, 0.64), (-0.55, 0.52, 0.5), (-0.73, 0.38, 0.35), (-0.79, 0.14, 0.3),
        (-0.83, -0.2, 0.15), (-0.9, -0.02, 0.1), (-0.96, 0.32, 0.1), (-0.92, 0.68, 0.15), (-0.72, 1.03, 0.2),
        (-0.4, 1.23, 0.2),
    ]  # fmt: skip
    fringe = np.zeros((len(front), 3))
    fringe[7:16, :2] = [
        (-0.03, -0.04), (-0.04, -0.02), (0.0, -0.13), (0.0, -0.22), (0.03, -0.12), (0.0, -0.02), (0.02, -0.01),
        (0.02, -0.02), (0.03, -0.04),
    ]  # fmt: skip
    torso = [
        (0, -1.2, 0), (0.3, -1.17, 0), (0.5, -1.2, 0), (0.86, -1.3, 0), (1.18, -1.45, 0), (1.36, -1.66, 0),
        (1.4, -1.85, 0), (0.7, -1.85, 0), (0, -1.85, 0),
    ]  # fmt: skip
    neck = [
        (0, -0.5, 0), (0.36, -0.5, 0), (0.34, -0.85, 0), (0.36, -1.1, 0), (0.5, -1.24, 0), (0.2, -1.36, 0),
        (0, -1.4, 0),
    ]  # fmt: skip
    parts = {
        "back": _mirrored(back),
        "torso": _mirrored(torso),
        "neck": _mirrored(neck),
        **_both("ear", _ring(0.84, -0.06, -0.05, 0.12, 0.2, 8)),
        **_both("ear_line", np.array([(0.87, 0.05, 0), (0.91, 0.0, 0), (0.89, -0.08, 0), (0.86, -0.12, 0)])),
        "head": _mirrored(head),
        "front": np.array(front),
    }
    return {"long": _mirrored(long), "fringe": fringe}, parts


def _upper_face() -> dict[str, np.ndarray]:
    """Eyes, brows, cheeks and nose at rest."""
    bend = 1 - np.linspace(-1, 1, 7) ** 2
    span = np.linspace(-1, 1, 7)
    lid = np.stack([0.345 + 0.215 * span, 0.12 + 0.02 * span, 0.72 - 0.1 * np.abs(0.34 + 0.2 * span)], 1)
    brow = np.array([
        (0.14, 0.435), (0.25, 0.472), (0.38, 0.487), (0.5, 0.455), (0.6, 0.375), (0.5, 0.408), (0.38, 0.428),
        (0.25, 0.405), (0.14, 0.362),
    ])  # fmt: skip
    return {
        **_both("lid_upper", lid + np.stack([0 * bend, 0.155 * bend**0.8, 0.04 * bend], 1)),
        **_both("lid_lower", lid - np.stack([0 * bend, 0.095 * bend, -0.02 * bend], 1)),
        **_both("crease", lid + np.stack([0.02 * span, 0.012 + 0.205 * bend**0.8, 0.04 * bend], 1)),
        **_both("iris", _ring(0.335, 0.125, 0.72, 0.125, 0.128, 8)),
        **_both("pupil", _ring(0.335, 0.125, 0.73, 0.06, 0.062, 8)),
        "glint_right": _ring(0.37, 0.172, 0.74, 0.036, 0.036, 6),
        "glint_left": _ring(-0.3, 0.172, 0.74, 0.036, 0.036, 6),
        **_both("bag", np.array([(0.2, -0.02, 0.72), (0.33, -0.05, 0.74), (0.48, -0.02, 0.68)])),
        **_both("brow", np.column_stack([brow, 0.76 - 0.2 * brow[:, 0]])),
        **_both("furrow", np.array([(0.045, 0.33, 0.8), (0.05, 0.42, 0.8), (0.035, 0.5, 0.8)])),
        **_strands(),
        "forehead": np.array([(-0.3, 0.62, 0.7), (0, 0.65, 0.75), (0.3, 0.62, 0.7)]),
        "nose": np.array([
            (-0.14, -0.2, 0.85), (-0.15, -0.26, 0.85), (-0.1, -0.305, 0.9), (0, -0.325, 1.02), (0.1, -0.305, 0.9),
            (0.15, -0.26, 0.85), (0.14, -0.2, 0.85),
        ]),
        **_both("nostril", _ring(0.065, -0.285, 0.95, 0.03, 0.018, 6)),
        "bridge": np.array([(0.09, 0.14, 0.8), (0.075, 0.0, 0.9), (0.1, -0.14, 0.95)]),
        "tip": np.array([(0.0, -0.2, 1.05)]),
        **_both("wrinkle", np.array([(0.05, 0.1, 0.85), (0.1, 0.06, 0.82), (0.13, 0.0, 0.8)])),
        **_both("cheek", np.array([(0.5, -0.27, 0.6)])),
        **_both("fold", np.array([(0.2, -0.27, 0.8), (0.31, -0.4, 0.75), (0.385, -0.56, 0.65)])),
    }  # fmt: skip


def _mouth() -> dict[str, np.ndarray]:
    """Lips, teeth, tongue and chin at rest."""
    x = 0.29 * _SPOTS
    z = 0.85 - 0.15 * _SPOTS**2
    line = -0.605 + 0.022 * _SPOTS**2
    bow = line + np.array([0, 0.045, 0.085, 0.078, 0.085, 0.045, 0])
    base = line - np.array([0, 0.062, 0.105, 0.118, 0.105, 0.062, 0])
    return {
        "chin": np.array([(-0.12, -0.84, 0.75), (0, -0.815, 0.78), (0.12, -0.84, 0.75)]),
        "teeth_upper": np.array([
            (-0.25, -0.46, 0.78), (0, -0.5, 0.8), (0.25, -0.46, 0.78), (0.25, -0.6, 0.78), (0, -0.69, 0.8),
            (-0.25, -0.6, 0.78),
        ]),
        "teeth_lower": np.array([
            (-0.19, -0.76, 0.72), (0, -0.745, 0.75), (0.19, -0.76, 0.72), (0.19, -0.84, 0.72), (0, -0.84, 0.75),
            (-0.19, -0.84, 0.72),
        ]),
        "tongue": _ring(0, -0.83, 0.6, 0.17, 0.1, 8),
        "lips_corner": np.array([(x[0], line[0], z[0]), (x[-1], line[-1], z[-1])]),
        "lips_upper_outer": np.stack([x, bow, z], 1)[1:-1],
        "lips_upper_inner": np.stack([x, line, z], 1)[1:-1],
        "lips_lower_inner": np.stack([x, line, z], 1)[1:-1],
        "lips_lower_outer": np.stack([x, base, z - 0.02], 1)[1:-1],
    }  # fmt: skip


def _strands() -> dict[str, np.ndarray]:
    """Lines of the hair, which start at the parting."""
    ends = {
        "strand_a": [(0.3, 0.86), (0.12, 1.0), (-0.22, 0.98), (-0.52, 0.8), (-0.74, 0.52)],
        "strand_b": [(0.32, 0.9), (0.16, 1.1), (-0.2, 1.13), (-0.6, 0.95), (-0.84, 0.6)],
        "strand_c": [(0.34, 0.86), (0.52, 0.9), (0.7, 0.72), (0.82, 0.46), (0.86, 0.2)],
        "strand_d": [(0.27, 0.82), (0.08, 0.86), (-0.2, 0.78), (-0.46, 0.64), (-0.66, 0.5)],
    }
    return {name: np.column_stack([points, np.full(5, 0.4)]) for name, points in ends.items()}


def _jaw_share(name: str, points: np.ndarray) -> np.ndarray:
    """How far points follow the jaw: the chin wholly, the corners of the mouth in part, the upper face not at all."""
    fixed = {"lips_corner": 0.42, "chin": 1.0, "teeth_lower": 1.0, "tongue": 1.0}
    if name.startswith("lips_lower"):
        return 1 - 0.58 * _SPOTS[1:-1] ** 4
    if name.startswith("lips_upper"):
        return 0.42 * _SPOTS[1:-1] ** 4
    if name == "head":
        return np.clip((-0.1 - points[:, 1]) / 0.8, 0, 1)
    if name.startswith("fold"):
        return np.clip((-0.35 - points[:, 1]) / 0.6, 0, 1)
    return np.full(len(points), fixed.get(name, 0.0))


def _pose_share(name: str, points: np.ndarray) -> np.ndarray:
    """How far points follow the head: clothes not at all, the neck less the lower it is."""
    if name == "torso":
        return np.zeros(len(points))
    if name == "neck":
        return np.clip((points[:, 1] + 1.25) / 0.7, 0, 1)
    if name == "back":
        return np.clip((points[:, 1] + 1.0) / 0.6, 0.4, 1)
    return np.ones(len(points))


def _move_upper(face: Face) -> None:
    """Brows, lids, cheeks and nose."""
    template, groups, column = face.template, face.groups, NAMED.index
    bend = 1 - np.linspace(-1, 1, 7) ** 2
    for side, sign in (("right", 1), ("left", -1)):
        rows = groups[f"brow_{side}"]
        outward = np.clip((np.abs(template[rows, 0]) - 0.13) / 0.47, 0, 1)
        face.exp[rows, 1, column("brow_raise")] = 0.17 + 0.02 * np.sin(np.pi * outward) - 0.03 * outward
        face.exp[rows, 1, column("brow_furrow")] = -0.15 + 0.21 * outward
        face.exp[rows, 0, column("brow_furrow")] = -0.06 * sign * (1 - outward)
        face.exp[groups[f"furrow_{side}"], 1, column("brow_furrow")] = -0.04
        face.exp[groups[f"lid_upper_{side}"], 1, column("lid_wide")] = 0.155 * bend**0.8 + 0.06 * bend
        face.exp[groups[f"lid_lower_{side}"], 1, column("lid_wide")] = -0.035 * bend
        face.exp[groups[f"crease_{side}"], 1, column("lid_wide")] = 0.06 * bend
        face.exp[groups[f"lid_lower_{side}"], 1, column("cheek_raise")] = 0.07 * bend
        face.exp[groups[f"bag_{side}"], 1, column("cheek_raise")] = 0.05
        face.exp[groups[f"cheek_{side}"], 1, column("cheek_raise")] = 0.09
        face.exp[groups[f"nostril_{side}"], 1, column("nose_wrinkle")] = 0.05
        face.exp[groups[f"wrinkle_{side}"], 1, column("nose_wrinkle")] = 0.03
    face.exp[groups["forehead"], 1, column("brow_raise")] = 0.06
    face.exp[groups["nose"], 1, column("nose_wrinkle")] = [0.09, 0.08, 0.05, 0.04, 0.05, 0.08, 0.09]
    face.exp[groups["nose"], 0, column("nose_wrinkle")] = [-0.04, -0.04, -0.02, 0, 0.02, 0.04, 0.04]


def _move_lips(face: Face) -> None:
    """The seven lip components, and the folds beside the mouth that follow the corners."""
    groups = face.groups
    spots = {"corner": _SPOTS[[0, -1]], **{name: _SPOTS[1:-1] for name in _LIP_GROUPS[1:]}}
    for name, at in spots.items():
        rows = groups[f"lips_{name}"]
        for component, (dx, dy, dz) in _lip_moves(name, at).items():
            face.exp[rows, :, NAMED.index(component)] = np.stack(np.broadcast_arrays(dx, dy, dz), 1)
    for side, sign in (("right", 1.0), ("left", -1.0)):
        for component in NAMED[5:]:
            dx, dy, dz = (float(np.asarray(v).ravel()[0]) for v in _lip_moves("corner", np.array([sign]))[component])
            face.exp[groups[f"fold_{side}"], :, NAMED.index(component)] = np.outer((0.15, 0.4, 0.85), (dx, dy, dz))


_LIP_GROUPS = ("corner", "upper_outer", "upper_inner", "lower_inner", "lower_outer")


def _lip_moves(group: str, at: np.ndarray) -> dict[str, tuple]:
    """Displacement of lip points by component.

    Args:
        group: Name of the row of lip points.
        at: (n,) Places along the lips, -1 to 1.
    """
    far, middle = at**2, 1 - at**2
    arch = np.sqrt(middle)
    upper, lower, outer = group.startswith("upper"), group.startswith("lower"), group.endswith("outer")
    up = 1.0 if upper else -1.0 if lower else 0.0
    lean = np.clip(0.5 + 0.75 * at, 0, 1)  # a sneer lifts one side more
    return {
        "corner_up": (0.09 * at, 0.17 * far - (0.03 + (0.02 * up if outer else 0.0)) * middle, -0.05 * far),
        "corner_down": (-0.015 * at, -0.15 * far + (0.03 if lower else 0.015) * middle, 0.03 * middle),
        "stretch": (0.12 * at, (-0.015 * up if outer else 0.0) * middle, -0.05 * far),
        "round": (
            -0.135 * at,
            up * arch * ((0.07 if upper else 0.035) if outer else 0.06),
            0.12 * middle,
        ),
        "upper_raise": (0.0 * at, (0.07 * middle if upper else 0.0) + 0.1 * lean * far, 0.0),
        "lower_drop": (0.0 * at, -0.13 * arch if lower else 0.0 * at, 0.0),
        "press": (-0.02 * at, -up * middle * (0.05 if outer else 0.035), -0.02),
    }


def _move_identity(face: Face, styles: dict[str, np.ndarray]) -> None:
    """Shape of the face, length of the hair, fringe and spacing of the eyes."""
    template, groups = face.template, face.groups
    body = set(range(groups["torso"].start, groups["neck"].stop))
    skull = np.array([row for row in range(len(template)) if row not in body])
    face.identity[skull, 0, 0] = 0.1 * template[skull, 0]
    low = np.clip((0.1 - template[:, 1]) / 1.1, 0, 1)
    low[groups["torso"]] = 0
    low[groups["neck"]] = 0
    low[groups["back"]] = 0
    face.identity[:, 1, 1] = -0.13 * low
    outline = groups["head"]
    face.identity[outline, 0, 1] = -0.05 * np.sign(template[outline, 0]) * np.sin(np.pi * low[outline])
    face.identity[groups["back"], :, 4] = styles["long"]
    face.identity[groups["front"], :, 5] = styles["fringe"]
    for name, rows in groups.items():
        if name.startswith(("lid", "crease", "iris", "pupil", "glint", "bag", "brow")):
            face.identity[rows, 0, 6] = 0.03 if name.endswith("right") else -0.03
