"""Small PDF files with what the text of a page depends on: form fields, annotations, layers, labels, fonts."""

from __future__ import annotations

from tests.pdfs import join_objects

_FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries, len(content), content)


def words(text: str, y: int) -> bytes:
    """A line of text for a content stream."""
    return b"BT /F1 12 Tf 20 %d Td (%s) Tj ET\n" % (y, text.encode("cp1252"))


def form(text: str, entries: bytes = b"") -> bytes:
    """A form, such as the appearance of a field, that shows a text."""
    box = b"/Type/XObject/Subtype/Form/BBox[0 0 200 200]/Resources<</Font<</F1 3 0 R>>>>"
    return stream(words(text, 4), box + entries)


def one_page(content: bytes, *, page: bytes = b"", catalog: bytes = b"", others: tuple[bytes, ...] = ()) -> bytes:
    """A PDF of one page of 200 x 200 points with the font ``/F1``.

    ``page`` and ``catalog`` are entries of the two dictionaries. ``others`` are the objects 6, 7, ...
    """
    resources = b"" if b"/Resources" in page else b"/Resources<</Font<</F1 3 0 R>>>>"
    return join_objects(
        [
            b"<</Type/Catalog/Pages 2 0 R%s>>" % catalog,
            b"<</Type/Pages/Count 1/Kids[4 0 R]>>",
            _FONT,
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 5 0 R%s%s>>" % (page, resources),
            stream(content),
            *others,
        ]
    )


def with_fields() -> bytes:
    """A form and annotations: each has an appearance with a word. Flags: 2 hidden, 4 print, 32 not in the view."""

    def annotation(kind: bytes, flags: int, look: int, entries: bytes = b"") -> bytes:
        return b"<</Type/Annot/Subtype/%s/Rect[20 20 180 40]/F %d/AP<</N %d 0 R>>%s>>" % (kind, flags, look, entries)

    field = b"/FT/Tx/T(f)/V(value)/DA(/F1 12 Tf 0 g)"
    return one_page(
        words("Surname", 100),
        page=b"/Annots[6 0 R 8 0 R 10 0 R 12 0 R 14 0 R]",
        catalog=b"/AcroForm<</Fields[6 0 R 8 0 R]/DR<</Font<</F1 3 0 R>>>>>>",
        others=(
            annotation(b"Widget", 4, 7, field),
            form("Zimmerwald"),
            annotation(b"Widget", 6, 9, field),
            form("concealed"),
            annotation(b"FreeText", 4, 11, b"/Contents(x)"),
            form("Ouagadougou"),
            annotation(b"FreeText", 36, 13, b"/Contents(x)"),
            form("unviewed"),
            b"<</Type/Annot/Subtype/Popup/Rect[0 0 90 90]/Contents(popped)/Open false>>",
        ),
    )


def with_layers(default: bytes) -> bytes:
    """Text on two layers, in marked content and in forms; ``default`` is the default configuration of the layers."""
    content = b"/OC /A BDC %s EMC /OC /B BDC %s EMC /X Do /Y Do " % (words("first", 180), words("second", 150))
    content += b"/OC /M BDC %s EMC %s" % (words("both", 120), words("always", 90))
    return one_page(
        content,
        page=b"/Resources<</Font<</F1 3 0 R>>/Properties<</A 6 0 R/B 7 0 R/M 8 0 R>>/XObject<</X 9 0 R/Y 10 0 R>>>>",
        catalog=b"/OCProperties<</OCGs[6 0 R 7 0 R]/D<<%s>>>>" % default,
        others=(
            b"<</Type/OCG/Name(A)>>",
            b"<</Type/OCG/Name(B)>>",
            b"<</Type/OCMD/OCGs[6 0 R 7 0 R]/P/AllOn>>",
            form("firstform", b"/OC 6 0 R"),
            form("secondform", b"/OC 7 0 R"),
        ),
    )


def with_wrong_letters(text: str, *, shift: int) -> bytes:
    """A page that shows ``text`` and whose font says that each character is the one ``shift`` places on."""
    lines = [text[i : i + 60] for i in range(0, len(text), 60)]
    content = b"".join(words(line, 180 - 14 * i) for i, line in enumerate(lines))
    ranges = b"1 beginbfrange <21> <7e> <%04x> endbfrange 1 beginbfchar <20> <0020> endbfchar" % (0x21 + shift)
    cmap = (
        b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /W def /CMapType 2 def "
        b"1 begincodespacerange <00> <ff> endcodespacerange %s endcmap end end" % ranges
    )
    return one_page(
        content,
        page=b"/Resources<</Font<</F1 6 0 R>>>>",
        others=(_FONT[:-2] + b"/ToUnicode 7 0 R>>", stream(cmap)),
    )


def scan(grey: int, stamp: str = "") -> bytes:
    """The content stream of a page that is one image of a grey, with a stamp above it."""
    image = b"q 612 0 0 792 0 0 cm BI /W 1 /H 1 /CS /G /BPC 8 ID %c EI Q\n" % grey
    return image + (words(stamp, 20) if stamp else b"")
