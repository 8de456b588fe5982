"""WikiText-2."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import torch

from steepest.lightning._cache import cache_root, download
from steepest.lightning._data import TensorData
from steepest.lightning._loader import Tensors

URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"
SHA256 = "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"
ARCHIVE = "wikitext-2-v1.zip"
FILES = {
    "train": "wikitext-2/wiki.train.tokens",
    "val": "wikitext-2/wiki.valid.tokens",
    "test": "wikitext-2/wiki.test.tokens",
}
END = "<eos>"


class WikiText2Data(TensorData):
    """WikiText-2: two million words of Wikipedia, 33,278 distinct, for language models.

    Downloads the original archive (4.3 MiB) once: the tokenized version, rare words replaced by
    ``<unk>``; each line ends in ``<eos>``. A split's text is one stream, cut into windows of
    ``context`` words that do not overlap; targets are the inputs one word later.

    Attributes:
        vocabulary: Words in the order in which the training text first uses them, after
            ``setup``; a word's index is its position here.

    Args:
        batch_size: Windows per batch.
        context: Words that the model sees.
        root: Folder of the archive; by default ``data/cache`` of the repository, or
            ``~/.cache/steepest`` outside of one.
        seed: Seed of the training order.
        num_workers: Worker processes.

    Raises:
        ValueError: If ``batch_size`` or ``context`` is not positive.
        DownloadError: If the archive is missing and there is no network. Raised by
            ``prepare_data``, and says what to put where.
    """

    def __init__(
        self,
        batch_size: int = 32,
        *,
        context: int = 64,
        root: str | os.PathLike[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if context < 1:
            raise ValueError(f"context must be positive, not {context}")
        self.context = context
        self.root = root
        self.vocabulary: list[str] = []

    def prepare_data(self) -> None:
        """Download the archive if it is not there."""
        self.archive()

    def archive(self) -> Path:
        """The archive, downloaded if need be."""
        return download(URL, cache_root(self.root) / ARCHIVE, SHA256)

    def load(self) -> dict[str, Tensors]:
        """The three splits."""
        with zipfile.ZipFile(self.archive()) as archive:
            texts = {name: archive.read(file).decode() for name, file in FILES.items()}
        streams = {name: text.replace("\n", f" {END} ").split() for name, text in texts.items()}
        index = {word: i for i, word in enumerate(dict.fromkeys(streams["train"]))}
        self.vocabulary = list(index)
        return {name: self._windows(words, index) for name, words in streams.items()}

    def _windows(self, words: list[str], index: dict[str, int]) -> Tensors:
        tokens = torch.tensor([index[word] for word in words])
        count = (len(tokens) - 1) // self.context
        inputs = tokens[: count * self.context].view(count, self.context)
        return Tensors(inputs, tokens[1 : count * self.context + 1].view(count, self.context))
