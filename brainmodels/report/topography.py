"""Maps of one value for each EEG channel on the head.

topography(values, space, Path("occipital.png"), "drop of top-1")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veca.report.curves import GREY, STYLE

from ..data import SensorSpace
from ..errors import AxisError, BrainDataError, near_names, need
from .figures import _pyplot

if TYPE_CHECKING:
    from mne.channels import DigMontage

__all__ = ["MONTAGE", "placed", "topography"]

MONTAGE = "standard_1005"
"""Name of the positions in MNE where a space names none."""

_RENAMED = {"standard_1005": "colin27_1005", "standard_1020": "colin27_1020"}  # in MNE 1.13


def placed(ch_names: Sequence[str], montage: str = MONTAGE, reference: Sequence[str] = ("FZ",)) -> dict[str, str]:
    """Names in a montage of MNE of the channels that can be drawn, by their own names. Case does not matter.

    Args:
        ch_names: Names of the channels.
        montage: Name of the montage in MNE.
        reference: Channels to leave out, because their values are 0 by definition.

    Raises:
        BrainDataError: The montage is unknown.
        ImportError: MNE is not installed.
    """
    known = {name.upper(): name for name in _positions(montage).ch_names}
    absent = {name.upper() for name in reference}
    return {name: known[name.upper()] for name in ch_names if name.upper() in known and name.upper() not in absent}


def topography(
    values: np.ndarray,
    space: SensorSpace,
    path: Path,
    name: str = "",
    reference: Sequence[str] = ("FZ",),
    limit: float | None = None,
) -> tuple[str, ...]:
    """Draw one value for each channel on the head, seen from above, and write a PNG file.

    Red is above 0 and blue is below. Channels without a position, such as CB1 and CB2 of EEG-3D, and the reference are
    left out. The figure names them.

    Args:
        values: Values of the channels, (C,).
        space: Sensors. Their positions are those of its montage, or of `MONTAGE` where it has none.
        path: PNG file to write.
        name: Name of the value, for the colour bar.
        reference: Names of reference channels.
        limit: Absolute value of the strongest colours. None means the largest drawn one.

    Returns:
        Names of the channels that were left out.

    Raises:
        AxisError: There is not one value for each channel.
        BrainDataError: A drawn value is not finite, or fewer than four channels have a position.
        ImportError: MNE or matplotlib is not installed.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(space),):
        raise AxisError(f"expected values of {len(space)} channels, got shape {values.shape}")
    montage = space.montage or MONTAGE
    places = placed(space.ch_names, montage, reference)
    left_out = tuple(channel for channel in space.ch_names if channel not in places)
    if len(places) < 4:
        raise BrainDataError(f"expected four channels or more with a position in {montage}, got {len(places)}")
    drawn = values[[channel in places for channel in space.ch_names]]
    if not np.isfinite(drawn).all():
        wrong = list(places)[int(np.argmin(np.isfinite(drawn)))]
        raise BrainDataError(f"expected finite values, got {drawn[list(places).index(wrong)]} of {wrong}")
    import mne

    info = mne.create_info(list(places.values()), space.sfreq, "eeg", verbose="error")
    info.set_montage(_positions(montage), verbose="error")
    most = limit or float(np.abs(drawn).max()) or 1.0
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
        look: dict[str, Any] = {"cmap": "RdBu_r", "contours": 0, "sensors": "k."}
        image, _ = mne.viz.plot_topomap(drawn, info, axes=axes, vlim=(-most, most), show=False, **look)
        figure.colorbar(image, ax=axes, shrink=0.7, label=name)
        if left_out:
            axes.set_xlabel(f"not drawn: {', '.join(left_out)}", fontsize=8, color=GREY)
        figure.savefig(path)
        plt.close(figure)
    return left_out


def _positions(name: str) -> "DigMontage":
    """A montage of MNE by its old or new name."""
    try:
        from mne.channels import get_builtin_montages, make_standard_montage
    except ImportError as error:
        raise need("mne", "a topography") from error
    known = [str(montage) for montage in get_builtin_montages()]
    found = next((other for other in (_RENAMED.get(name), name) if other in known), None)
    if found is None:
        raise BrainDataError(f"expected a montage of MNE, such as {MONTAGE}, got {name!r}{near_names(name, known)}")
    return make_standard_montage(found)
