"""The first sheet of an Excel workbook as columns of text: an archive of XML, so the standard library is enough."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ..errors import LayoutError, near_names

__all__ = ["read_sheet"]

_SHEET, _STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
_MAX_BYTES = 64 << 20  # of a member, unpacked


def read_sheet(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Columns under the header of the first row, as strings; rows that are empty throughout are left out.

    Raises:
        LayoutError: no workbook, a needed column is absent, or a row lacks one of its cells.
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
    """Texts by the letters of their column, such as {"A": "oil_lamp_08", "B": "3"}."""
    cells = {}
    for cell in row.findall(".//{*}c"):
        text = "".join(part.text or "" for tag in ("{*}v", "{*}t") for part in cell.findall(".//" + tag))
        if cell.get("t") == "s" and text:
            text = shared[int(text)]
        if text:
            cells[re.match("[A-Z]+", cell.get("r", "A"))[0]] = text
    return cells
