"""What the figures of all chapters share: sizes, and colors that a color-blind reader tells apart.

The colors are those of Okabe and Ito, in print distinct by lightness as well. Baselines are gray.
"""

import matplotlib.pyplot as plt

BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
RED = "#D55E00"
PINK = "#CC79A7"
ORANGE = "#E69F00"
GRAY = "#777777"


def set_style() -> None:
    """Figures that fit the page's width, and stay small in a notebook."""
    plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "font.size": 9})
