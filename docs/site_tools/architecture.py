"""Draws the figure of the network: `python -m docs.site_tools.architecture`.

Writes docs/architecture_light.svg and docs/architecture_dark.svg.
"""

from pathlib import Path

DOCS = Path(__file__).parents[1]
THEMES = {
    "light": dict(ink="#24292f", line="#57606a", blue="#0969da", fill="#ddf4ff", back="#ffffff"),
    "dark": dict(ink="#e6edf3", line="#8b949e", blue="#58a6ff", fill="#12263f", back="#0d1117"),
}
WIDTH, HEIGHT = 880, 330


def box(x, y, w, h, label, theme, *, filled=False, small=""):
    """A rectangle with a label, and a smaller line under it."""
    fill = theme["fill"] if filled else "none"
    middle = y + h / 2 + (5 if not small else -3)
    text = (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" '
        f'stroke="{theme["line"]}" stroke-width="1.5"/>'
        f'<text x="{x + w / 2}" y="{middle}" text-anchor="middle">{label}</text>'
    )
    if small:
        text += (
            f'<text x="{x + w / 2}" y="{middle + 18}" text-anchor="middle" class="small">'
            f"{small}</text>"
        )
    return text


def arrow(path, theme, *, color="line", dashed=False):
    """A path with a head."""
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" stroke="{theme[color]}" stroke-width="1.8"{dash} '
        f'marker-end="url(#{color})"/>'
    )


def head(color, theme):
    """The head of the arrows of a colour."""
    return (
        f'<marker id="{color}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{theme[color]}"/></marker>'
    )


def cell(theme):
    """The blocks of three resolutions, and the fusion between them."""
    parts = []
    rows = ((92, "1"), (152, "1/2"), (212, "1/4"))
    for y, scale in rows:
        parts.append(box(288, y, 122, 40, f"blocks, {scale}", theme, filled=True))
        parts.append(box(480, y, 80, 40, "sum", theme, filled=True))
    for y, _ in rows:
        for target, _ in rows:
            parts.append(arrow(f"M410 {y + 20}L480 {target + 20}", theme))
    return "".join(parts)


def draw(theme):
    """The whole figure as SVG."""
    style = (
        f"text{{font:15px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;"
        f"fill:{theme['ink']}}}.small{{font-size:12.5px;fill:{theme['line']}}}"
        f".blue{{fill:{theme['blue']}}}"
    )
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{theme["back"]}"/>',
        box(16, 92, 80, 40, "input", theme),
        box(128, 92, 90, 40, "stem: x", theme),
        arrow("M96 112L128 112", theme),
        arrow("M218 112L288 112", theme),
        f'<rect x="244" y="56" width="340" height="222" rx="10" fill="none" '
        f'stroke="{theme["blue"]}" stroke-width="2"/>',
        '<text x="414" y="44" text-anchor="middle" class="blue">the cell f(z; x), one layer</text>',
        cell(theme),
        arrow("M560 112L640 112L640 304L230 304L230 240L246 240", theme, color="blue"),
        '<text x="430" y="322" text-anchor="middle" class="small">'
        "a root solver finds z* = f(z*; x), on all resolutions at once</text>",
        box(680, 86, 80, 52, "z*", theme, filled=True, small="the output"),
        arrow("M640 112L680 112", theme),
        box(784, 92, 80, 40, "head", theme),
        arrow("M760 112L784 112", theme),
        arrow("M720 200L720 138", theme, dashed=True),
        *(
            f'<text x="744" y="{220 + 18 * i}" text-anchor="middle" class="small">{line}</text>'
            for i, line in enumerate(
                ("gradient: one linear solve", "at z*, (I − J)ᵀ u = ∂loss/∂z", "no step is stored")
            )
        ),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="A multiscale deep equilibrium model"><style>{style}</style>'
        f"<defs>{head('line', theme)}{head('blue', theme)}</defs>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    for name, theme in THEMES.items():
        (DOCS / f"architecture_{name}.svg").write_text(draw(theme))
