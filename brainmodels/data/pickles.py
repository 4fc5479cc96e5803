"""Opening of files that torch has saved, without running what they hold.

features = read_torch(path)  # tensors in dictionaries and lists
"""

import pickle
from pathlib import Path
from typing import Any

from ..errors import LayoutError, UnsafePickleError

__all__ = ["read_torch"]


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, if it is tensors, numbers and text in dictionaries and lists.

    Raises:
        UnsafePickleError: The file holds more, which could run code.
        LayoutError: The file is damaged or of another kind.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UnsafePickleError(
            f"expected only tensors in {path}, got objects that can run code when they are opened, or a damaged file; "
            "save it again as plain tensors"
        ) from None
    except Exception as error:  # on damaged files, torch raises nearly anything
        reason = f"{type(error).__name__}: {(str(error) or 'the file ends too early').splitlines()[0]}"
        raise LayoutError(f"expected a file of torch at {path}, got something else ({reason}); copy it again") from None
