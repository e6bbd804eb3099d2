"""Style of plots: colours that colour-blind readers tell apart, light and dark.

Invariant: a picture names classes only, so the same one fits a light page, a dark page and paper.
Source: Okabe & Ito 2008, colour universal design (blue, vermilion, orange, bluish green).
"""

from pathlib import Path

_STYLE = Path(__file__).with_name("picture.css")
# A file of its own stands on white, whatever page shows it.
_LIGHT = (
    ":root{--ink:#1c2127;--quiet:#5b6570;--rule:#d9dee3;--surface:#fff;--gain:#0072b2;--loss:#c44a00;"
    "--doubt:#9a6a00;--faded:#9aa4ae;--shade:#c44a0014}"
)


def rules() -> str:
    """Return the rules of all pictures, for a page that defines the colours."""
    return _STYLE.read_text(encoding="utf-8")


def standalone(picture: str) -> str:
    """Turn a picture into a file: its rules inside, on a white ground; an empty one stays empty."""
    if not picture:
        return ""
    head, _, body = picture.partition(">")
    ground = '<rect class="ground" x="-24" y="-16" width="100%" height="100%"/>'
    width, height = (float(part) for part in head.partition('viewBox="0 0 ')[2].partition('"')[0].split())
    padded = f'viewBox="-24 -16 {width + 48:.0f} {height + 32:.0f}" width="{width + 48:.0f}"'
    head = head.replace(f'viewBox="0 0 {width:.0f} {height:.0f}"', padded)
    return f"{head}><style>{_LIGHT}{rules()}</style>{ground}{body}\n"
