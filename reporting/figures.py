"""How figures are drawn and saved: in one style, independent of matplotlib's settings on this machine."""
import contextlib
import io
import warnings
from pathlib import Path

from harness.files import replace_file

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "pdarts", "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7,
         "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
         "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
CELLS = {"normal": "normal cell", "reduce": "reduction cell"}


@contextlib.contextmanager
def style(**settings):
    """Draw a block (or, as a decorator, a function) under matplotlib's defaults, STYLE and these settings.

    matplotlib is imported here, and by the modules that draw, which are imported in such a block: if its settings are
    broken, only drawing fails. Raises ValueError if matplotlib can't be imported.
    """
    try:
        import matplotlib.figure
    except Exception as error:  # of any type: settings are read, and a backend is looked up
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"can't draw ({line[:160]}): check matplotlib, its matplotlibrc and MPLBACKEND") from error
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | settings)
        yield


def drawable(text: str) -> str:
    """A text for a figure, with escapes for control characters and those that the font lacks, such as \\u65e5."""
    from matplotlib.font_manager import findfont, get_font
    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if c.isprintable() and ord(c) in glyphs else ascii(c)[1:-1] for c in text)


def render(figure, kind: str) -> bytes:
    """A figure as "png" or "svg", the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def save_figure(figure, path: Path) -> None:
    """Write a figure as path.png and path.svg. Raises OSError."""
    for kind in ("png", "svg"):
        replace_file(path.with_name(f"{path.name}.{kind}"), render(figure, kind))
