"""Descriptions of figures, from the code that draws them."""

from figure_alt import describe


def test_what_the_code_writes_on_the_figure_is_its_description():
    code = """
fig, axes = plt.subplots(1, 2)
for ax, name in zip(axes, names):
    ax.plot(x, y, label="gradient descent")
    ax.plot(x, z, label=f"{name}, tuned")
    ax.set(xlabel="step", ylabel="loss", title=name)
axes[0].set_title("exact")
plt.xlabel("epoch")
"""
    assert describe(code) == (
        "Figure. title: exact; across: step, epoch; up: loss; curves: gradient descent, …, tuned."
    )


def test_a_figure_without_words_says_where_it_comes_from():
    assert describe("plt.imshow(x)") == "Figure. Drawn by the code above."
    assert describe("%matplotlib inline\\nplt.plot(x)") == "Figure. Drawn by the code above."
