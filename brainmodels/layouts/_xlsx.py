"""Columns of text from the first sheet of an Excel workbook (.xlsx), read with the standard library.

    read_sheet(path, ["name", "label"])  # {"name": ["oil_lamp_08", ...], "label": ["3", ...]}

A workbook is a zip archive of XML files.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ..errors import LayoutError, near_names

__all__ = ["read_sheet"]

_SHEET, _STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
_MAX_BYTES = 64 << 20  # largest size of an unpacked member


def read_sheet(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Columns of the first sheet as strings, by the header in its first row. Empty rows are left out.

    Args:
        path: Path of the workbook.
        needed: Names of the columns to read.

    Raises:
        LayoutError: The file is no workbook, a needed column is missing, or one of its cells is empty.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sheet = _parse(archive, _SHEET)
            shared = []
            if _STRINGS in archive.namelist():
                shared = [
                    "".join(text.text or "" for text in item.findall(".//{*}t")) for item in _parse(archive, _STRINGS)
                ]
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError) as error:
        raise LayoutError(f"expected an Excel workbook (.xlsx) at {path}, got something else ({error})") from None
    rows = [_cells(row, shared) for row in sheet.findall(".//{*}row")]
    rows = [row for row in rows if row]
    header = {text: column for column, text in rows[0].items()} if rows else {}
    for name in needed:
        if name not in header:
            known = list(header)
            raise LayoutError(
                f"expected a column {name!r} in {path}, got {', '.join(known) or 'none'}{near_names(name, known)}"
            )
        for number, row in enumerate(rows[1:], 2):
            if header[name] not in row:
                raise LayoutError(f"expected a value of {name!r} in filled row {number} of {path}, got an empty cell")
    return {name: [row[header[name]] for row in rows[1:]] for name in needed}


def _parse(archive: zipfile.ZipFile, member: str) -> ElementTree.Element:
    if archive.getinfo(member).file_size > _MAX_BYTES:
        raise KeyError(f"{member} of over {_MAX_BYTES} bytes")
    return ElementTree.fromstring(archive.read(member))


def _cells(row: ElementTree.Element, shared: Sequence[str]) -> dict[str, str]:
    """Texts of a row by the letters of their columns, such as {"A": "oil_lamp_08", "B": "3"}."""
    cells = {}
    for cell in row.findall(".//{*}c"):
        text = "".join(part.text or "" for tag in ("{*}v", "{*}t") for part in cell.findall(".//" + tag))
        if cell.get("t") == "s" and text:
            text = shared[int(text)]
        if text:
            cells[cell.get("r", "A").rstrip("0123456789")] = text
    return cells
