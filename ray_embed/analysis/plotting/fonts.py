# SPDX-License-Identifier: Apache-2.0
"""Choose fonts that have the letters of the labels; if none has, number the labels instead."""

import contextlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

DEFAULT = "DejaVu Sans"
_KOREAN = (
    *("Noto Sans CJK KR", "Source Han Sans K", "Source Han Sans KR", "Noto Sans KR"),
    *("Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "Nanum Gothic"),
    *("NanumBarunGothic", "UnDotum"),
)
_JAPANESE = (
    *("Noto Sans CJK JP", "Source Han Sans", "Source Han Sans JP", "Noto Sans JP"),
    *("Hiragino Sans", "Hiragino Kaku Gothic ProN", "Yu Gothic", "Meiryo", "MS Gothic"),
    *("IPAexGothic", "IPAPGothic", "IPAGothic", "TakaoPGothic", "VL PGothic"),
)
_CHINESE = (
    *("Noto Sans CJK SC", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans SC"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Heiti SC", "STHeiti"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK TC", "Noto Sans TC"),
    *("PingFang TC", "Microsoft JhengHei", "Droid Sans Fallback", "Arial Unicode MS"),
)
# These map every character to a placeholder, or hold pictures in color that Agg cannot draw.
_USELESS = re.compile(r"last ?resort|adobe ?(blank|notdef)|color ?emoji|colrv1", re.IGNORECASE)
_EAST_ASIAN = {"CJK", "HANGUL", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "HALFWIDTH"}
_EAST_ASIAN |= {"FULLWIDTH"}
_JOINERS = "\u200c\u200d"
# How many letters the message for the user lists.
_LISTED = 6


@dataclass(frozen=True)
class Lettering:
    """How text is drawn.

    Attributes:
        families: font families for matplotlib, which takes each letter from the first that has it.
        missing: letters that none of them has.
        numbers: for each name with such letters, the number that is drawn in its place.
    """

    families: tuple[str, ...] = (DEFAULT,)
    missing: frozenset[str] = frozenset()
    numbers: dict[str, int] = field(default_factory=dict)

    def name(self, name: str) -> str:
        """Return a name as it is drawn: itself, or its number."""
        return f"#{self.numbers[name]}" if name in self.numbers else clean(name)

    def text(self, text: str) -> str:
        """Return a text in which letters that no font has are written as ``\\uXXXX``."""
        return "".join(_escaped(c) if c in self.missing else c for c in clean(text))

    def table(self, names: Iterable[str]) -> list[str]:
        """Return a line for each of these names that is drawn as a number: "#1 name"."""
        numbered = sorted(
            {self.numbers[name]: name for name in names if name in self.numbers}.items()
        )
        return [f"#{number} {self.text(name)}" for number, name in numbered]

    def advice(self) -> str | None:
        """Return a line that names the fonts to install, or None if no letter is missing."""
        if not self.missing:
            return None
        letters = sorted(self.missing)
        listed = " ".join(
            letter if letter.isprintable() else f"U+{ord(letter):04X}"
            for letter in letters[:_LISTED]
        )
        more = f" and {len(letters) - _LISTED} more" if len(letters) > _LISTED else ""
        fonts = dict.fromkeys(font for letter in letters if (font := _font_to_install(letter)))
        install = f"; install {' and '.join(fonts)}, then draw again" if fonts else ""
        names = "names with them become numbers or codes"
        return f"no font here can draw {listed}{more}: {names}{install}"


def choose_lettering(names: Sequence[str], texts: Iterable[str] = ()) -> Lettering:
    """Choose fonts for names, which may become numbers, and for other texts, which may not.

    Args:
        names: class names and the like, in the order in which they are numbered.
        texts: other texts, such as titles and file names.
    """
    needed = frozenset().union(*map(letters, names), *map(letters, texts))
    families, missing = _choose_families(needed)
    without = [name for name in dict.fromkeys(names) if letters(name) & missing]
    return Lettering(families, missing, {name: number for number, name in enumerate(without, 1)})


def clean(text: str) -> str:
    """Return a text on one line, in composed form, without characters that only control layout."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(
        _escaped(c) if unicodedata.category(c) in ("Cc", "Cs") else c
        for c in composed
        if not _is_invisible(c)
    )


def letters(text: str) -> frozenset[str]:
    """Return the characters of a text that a font must have."""
    return frozenset(c for c in clean(text) if not c.isspace() and c not in _JOINERS)


def _is_invisible(letter: str) -> bool:
    is_selector = "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef"
    return is_selector or (unicodedata.category(letter) == "Cf" and letter not in _JOINERS)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _choose_families(needed: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return font families, the default first, and the letters that none has."""
    with quiet_matplotlib():
        from matplotlib import font_manager

        missing = needed - _find_drawable(font_manager, DEFAULT, needed)
        if not missing:
            return (DEFAULT,), missing
        _add_new_fonts(font_manager)
        ranks = {name: rank for rank, name in enumerate(_order_families(missing))}
        families = [DEFAULT]
        entries = _choose_faces(font_manager.fontManager.ttflist)
        covered = {name: _find_covered(entry, missing) for name, entry in entries.items()}

        def rank_family(name: str) -> tuple[Any, ...]:
            letters = len(covered[name] & missing)
            is_other = not name.startswith("Noto Sans")
            return name not in ranks, -letters, ranks.get(name, 0), is_other, name

        while missing:
            useful = [name for name, letters in covered.items() if letters & missing]
            if not useful:
                break
            best = min(useful, key=rank_family)
            # matplotlib may take another file of the family.
            drawn = _find_drawable(font_manager, best, covered.pop(best) & missing)
            if drawn:
                families.append(best)
                missing -= drawn
        return tuple(families), missing


def _order_families(missing: frozenset[str]) -> tuple[str, ...]:
    """Return common font families, those first whose Han characters suit the labels' script."""
    scripts = {_get_script(letter) for letter in missing}
    if scripts & {"HIRAGANA", "KATAKANA"}:
        return *_JAPANESE, *_KOREAN, *_CHINESE
    if "HANGUL" in scripts:
        return *_KOREAN, *_CHINESE, *_JAPANESE
    return *_CHINESE, *_JAPANESE, *_KOREAN


def _choose_faces(entries: Iterable[Any]) -> dict[str, Any]:
    """Return the face of each family that is upright, if any is, and closest to regular weight."""

    def distance(entry: Any) -> tuple[bool, int]:
        weight = entry.weight if isinstance(entry.weight, int) else 400
        return entry.style != "normal", abs(weight - 400)

    faces: dict[str, Any] = {}
    for entry in entries:
        if _USELESS.search(entry.name):
            continue
        if entry.name not in faces or distance(entry) < distance(faces[entry.name]):
            faces[entry.name] = entry
    return faces


def _find_covered(entry: Any, needed: frozenset[str]) -> frozenset[str]:
    # Versions of matplotlib before 3.11 support only the first face of a collection.
    return _find_outlined(entry.fname, getattr(entry, "index", 0), needed)


def _find_drawable(font_manager: Any, family: str, needed: frozenset[str]) -> frozenset[str]:
    """Return the letters that both weights in use have, in the files that matplotlib takes."""
    for weight in ("normal", "bold"):
        properties = font_manager.FontProperties(family=[family], weight=weight)
        try:
            path = font_manager.fontManager.findfont(properties, fallback_to_default=False)
        except ValueError:
            return frozenset()
        needed = _find_outlined(str(path), getattr(path, "face_index", 0), needed)
    return needed


def _find_outlined(path: str, face: int, needed: frozenset[str]) -> frozenset[str]:
    """Return the letters for which a font file has an outline."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path, face_index=face) if face else FT2Font(path)
        outlined = frozenset(letter for letter in needed if font.get_char_index(ord(letter)))
        for letter in sorted(outlined)[:1]:
            # Color bitmaps have no outline.
            font.load_char(ord(letter))
            if not len(font.get_path()[0]):
                return frozenset()
    except (OSError, RuntimeError, TypeError):
        # The file is missing, or FreeType cannot read it.
        return frozenset()
    return outlined


def _add_new_fonts(font_manager: Any) -> None:
    """Add fonts to matplotlib that were installed after it cached its list."""
    manager = font_manager.fontManager
    known = {str(entry.fname) for entry in manager.ttflist}
    for path in sorted(font_manager.findSystemFonts()):
        if path not in known:
            # matplotlib skips unreadable files too. The errors have no common base class.
            with contextlib.suppress(Exception):
                manager.addfont(path)


@contextlib.contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Hide matplotlib's messages about its caches and font lookup, which do not help the user."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _get_script(letter: str) -> str:
    """Return the first word of a character's Unicode name, which is its script for letters."""
    return unicodedata.name(letter, "").partition(" ")[0]


def _font_to_install(letter: str) -> str | None:
    script = _get_script(letter)
    # Names of Han characters read "CJK UNIFIED IDEOGRAPH-4E00".
    if script in _EAST_ASIAN:
        return "Noto Sans CJK (Debian, Ubuntu: apt install fonts-noto-cjk)"
    if unicodedata.category(letter) in ("So", "Sk", "Sm"):
        return "Symbola (Debian, Ubuntu: apt install fonts-symbola)"
    if not script:
        # The character is private or not assigned.
        return None
    return f"Noto Sans {script.title()} (Debian, Ubuntu: apt install fonts-noto-core)"
