"""Descriptions of figures, from the code that draws them."""

from figures import describe, drawings


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


def test_each_figure_of_a_cell_has_its_own_code():
    code = "plt.imshow(x)\nplt.show()\nplt.plot(y)\nplt.show()\n"
    assert drawings(code, 2) == ["plt.imshow(x)\n", "\nplt.plot(y)\n"]
    assert drawings("for x in y:\n    plt.plot(x)\n    plt.show()\n", 3)[2].startswith("for")
