"""The recovery sheet as a PDF with QR codes, through reportlab, which is needed for nothing else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from appliance.errors import MagbayError
from appliance.keys import printable, sheet
from appliance.keys.sheet import Sheet

_MARGIN = 42.0  # points
_TYPE, _SIZE, _LEADING = "Courier", 9.0, 11.0
_SMALL, _SMALL_LEADING = 7.6, 8.6  # the lines of the key, in two columns
_QR = 235.0  # side of a QR code; a telephone reads 120 modules of 2 points each


def pdf(what: Sheet) -> bytes:
    """The sheet *what*, A4. Raises `MagbayError` when reportlab is not installed."""
    try:
        from reportlab.lib.pagesizes import A4
        from reportlab.pdfgen.canvas import Canvas
    except ImportError:
        raise MagbayError(
            "a PDF needs the library reportlab, which is not installed",
            hint="Install python3-reportlab (Debian) or 'magbay[sheet]' (pip), or take --text.",
        ) from None
    buffer = io.BytesIO()
    # invariant: nothing of the machine and the time in the file but what the sheet says.
    canvas = Canvas(buffer, pagesize=A4, invariant=True, pageCompression=1)
    canvas.setTitle(f"Recovery sheet of {what.host}")
    pages = _Pages(canvas, A4, f"{what.host}, {what.made}, key {what.fingerprint}")
    pages.block(sheet.introduction(what))
    for entry in what.entries:
        pages.block(sheet.magazine(entry))
    pages.block(sheet.instructions(what))
    if what.key is not None:
        pages.codes(printable.codes(what.key))
        pages.columns(printable.lines(what.key))
    pages.end()
    canvas.save()
    return buffer.getvalue()


class _Pages:
    """Fills pages from top to bottom."""

    def __init__(self, canvas: Any, size: tuple[float, float], footer: str) -> None:
        self._canvas, self._footer = canvas, footer
        self._width, self._height = size
        self._y = self._height - _MARGIN
        self._number = 1

    def block(self, rows: Sequence[str]) -> None:
        """Rows that stay together, and a blank one."""
        if self._y - len(rows) * _LEADING < 2 * _MARGIN:
            self._next()
        for row in rows:
            self._canvas.setFont(_TYPE + ("-Bold" if row[:2].isupper() else ""), _SIZE)
            self._canvas.drawString(_MARGIN, self._y - _SIZE, row)
            self._y -= _LEADING
        self._y -= _LEADING

    def codes(self, texts: Sequence[str]) -> None:
        """QR codes, six on a page of their own, each with its number."""
        for index, text in enumerate(texts):
            if index % 6 == 0:
                self._next()
            column, row = index % 2, index % 6 // 2
            x = _MARGIN + column * (self._width - 2 * _MARGIN - _QR)
            y = self._height - _MARGIN - (row + 1) * (_QR + 14)
            self._draw(text, x, y)
            self._canvas.setFont(_TYPE, _SIZE)
            self._canvas.drawString(x, y - 4, text.rsplit(" ", 1)[0])

    def columns(self, rows: Sequence[str]) -> None:
        """The lines of the key, in two columns on pages of their own."""
        most = int((self._height - 3 * _MARGIN) / _SMALL_LEADING)
        for first in range(0, len(rows), 2 * most):
            self._next()
            self._canvas.setFont(_TYPE, _SMALL)
            for index, row in enumerate(rows[first : first + 2 * most]):
                x = _MARGIN + index // most * (self._width - 2 * _MARGIN) / 2
                self._canvas.drawString(x, self._y - _SMALL - index % most * _SMALL_LEADING, row)

    def end(self) -> None:
        """Finish the last page."""
        self._canvas.setFont(_TYPE, 7)
        self._canvas.drawString(_MARGIN, _MARGIN / 2, f"{self._footer}, page {self._number}")
        self._canvas.showPage()

    def _next(self) -> None:
        self.end()
        self._number += 1
        self._y = self._height - _MARGIN

    def _draw(self, text: str, x: float, y: float) -> None:
        from reportlab.graphics import renderPDF
        from reportlab.graphics.barcode.qr import QrCodeWidget
        from reportlab.graphics.shapes import Drawing

        code = QrCodeWidget(text, barLevel="M", barWidth=_QR, barHeight=_QR)
        drawing = Drawing(_QR, _QR)
        drawing.add(code)
        renderPDF.draw(drawing, self._canvas, x, y)
