"""Colours of pictures: told apart by colour-blind readers, and text that can be read on each.

Source: the colours are those of Okabe & Ito 2008; contrast as WCAG 2.2 defines it, which asks for 4.5.
"""

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7a00", "#7f7f7f")
GOOD, BAD, DOUBT, QUIET = "#009e73", "#d55e00", "#e69f00", "#8c96a0"
LOST, UNCHANGED, GAINED = "#c44a00", "#f7f7f7", "#0072b2"  # vermilion, white, blue
_BLACK, _WHITE = "#000000", "#ffffff"


def of_change(strength: float) -> str:
    """Return the colour of a change from -1 (lost) over 0 to 1 (gained), as Plotly blends it."""
    share = abs(strength)
    pairs = zip(_channels(UNCHANGED), _channels(GAINED if strength > 0 else LOST), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def readable_on(colour: str) -> str:
    """Choose black or white, whichever stands out more on a colour: one of them always has 4.5 : 1."""
    return max(_BLACK, _WHITE, key=lambda ink: contrast(ink, colour))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    shares = [c / 255 for c in _channels(colour)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
