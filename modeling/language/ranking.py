"""Ranking by likelihood: exact log-probabilities of candidate texts behind a prompt.

    ranker = Ranker(language)
    [ranking] = ranker.rank(prompts_1QD, ["Question: what colour? Answer:"], [["red", "dark red"]])
    ranking.best(), ranking.scores("mean")

A candidate is the text that training would have as the target: set off from the prompt by the
family's rule, cut at `FrozenLM.max_text`, and followed by the family's end token, whose probability
counts too (else a candidate that begins another always wins). The sum of the log-probabilities is
minus the loss of `FrozenLM.token_losses` on that candidate.

That would be a forward pass over prompt and candidate for each candidate. Here a prompt is read
once, and its candidates follow as trees of tokens (`trie`, `readers`): a set of C candidates of a
few tokens behind a prompt of S positions costs about S + (different tokens) positions in place of
S x C. Models that cannot read trees are found out by a try, and read one candidate a row.

InstructBLIP (section 2.5) ranks so; its released code takes the sum for FlanT5, end token included,
and for Vicuna a mean over a padded row without the end token, which orders as the sum does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.language.readers import Reader, make_reader, takes_branches, window_of
from modeling.language.trie import Trie, cut_tries
from modeling.losses import CHUNK

Length = Literal["sum", "mean"]
"""Score of a candidate: the sum of its tokens' log-probabilities, or their mean."""

POSITIONS = 4096  # of prompts and nodes in one forward pass
NODES = 256  # of a tree: with more, the attention between nodes would cost more than it shares
_OBEYS = 0.2  # share of the error of a reading without branches that a reading with them may have


@dataclass(frozen=True)
class Ranking:
    """The candidates of one prompt with their log-probabilities.

    Attributes:
        candidates: Texts, as they were given.
        log_probs: Sum of the log-probabilities of each candidate's tokens, its end included.
        tokens: Number of tokens of each candidate, its end included.
    """

    candidates: tuple[str, ...]
    log_probs: tuple[float, ...]
    tokens: tuple[int, ...]

    def scores(self, length: Length = "sum") -> list[float]:
        """The score of each candidate; higher is better.

        Raises:
            ValueError: There is no such treatment of the length.
        """
        if length == "sum":
            return list(self.log_probs)
        if length == "mean":
            return [total / n for total, n in zip(self.log_probs, self.tokens, strict=True)]
        raise ValueError(f"length {length!r}: choose sum or mean")

    def order(self, length: Length = "sum") -> list[int]:
        """Indices of the candidates, the best first; equal ones stay in their order."""
        scores = self.scores(length)
        return sorted(range(len(scores)), key=lambda candidate: -scores[candidate])

    def best(self, length: Length = "sum") -> str:
        """The candidate with the highest score; the first of equal ones."""
        return self.candidates[self.order(length)[0]]


@dataclass(frozen=True)
class _Cut:
    """A list of candidates as tokens: the length of each, and trees that hold them."""

    tokens: tuple[int, ...]
    tries: list[Trie]


class Ranker:
    """A frozen language model that ranks candidate texts.

    Attributes:
        language: The language model.
        branched: Whether the model reads trees; else it reads each candidate in a row of its own.
    """

    def __init__(
        self,
        language: DecoderLM | EncoderDecoderLM,
        positions: int = POSITIONS,
        nodes: int = NODES,
    ) -> None:
        """Args:
        language: The language model.
        positions: Positions (of prompts and nodes) in one forward pass at most, which bounds
            the memory; a single tree may need more.
        nodes: Nodes of a tree at most.
        """
        self.language = language
        self._head = language.model.get_output_embeddings() if language._body is not None else None
        self._words: int = language.model.get_output_embeddings().weight.shape[0]
        if self._head is None:  # the model makes the logits of all positions at once
            positions = min(positions, max(64, 4 * CHUNK // self._words))
        self._positions, self._nodes = positions, nodes
        self._cut = lru_cache(maxsize=128)(self._cut_anew)
        self.branched = takes_branches(language) and self._obeys()

    @torch.no_grad()
    def rank(
        self,
        prompts_BQD: Tensor | None,
        prompts_text: Sequence[str],
        candidates: Sequence[Sequence[str]],
    ) -> list[Ranking]:
        """The log-probabilities of the candidates of each prompt.

        Args:
            prompts_BQD: Soft visual prompts, one for each text; None for text alone.
            prompts_text: Texts after the visual prompts; may be empty.
            candidates: Candidates of each prompt. A list that several prompts share is cut into
                tokens once.

        Raises:
            ValueError: Not one list of candidates a prompt, an empty list, nothing to continue, or
                a sequence that is longer than the model's positions.
        """
        if len(candidates) != len(prompts_text):
            raise ValueError(
                f"{len(candidates)} lists of candidates for {len(prompts_text)} prompts: one each "
                "is needed."
            )
        for row, texts in enumerate(candidates):
            if isinstance(texts, str) or not texts:
                raise ValueError(f"the candidates of prompt {row} are {texts!r}: give a list.")
        if not candidates:
            return []
        reader = make_reader(self.language, prompts_BQD, list(prompts_text))
        joints = [self.language._joint(prompt) for prompt in prompts_text]
        asked = [tuple(texts) for texts in candidates]
        whole = [self._cut(*given, self._nodes) for given in zip(asked, joints, strict=True)]
        longest = self._check_length(reader, whole)
        if self.branched and longest <= window_of(self.language):
            sums = self._sums(reader, [cut.tries for cut in whole], True)
        else:
            alone = [self._cut(*given, 1) for given in zip(asked, joints, strict=True)]
            sums = self._sums(reader, [cut.tries for cut in alone], False)
        return [
            Ranking(texts, tuple(sums_C.tolist()), cut.tokens)
            for texts, sums_C, cut in zip(asked, sums, whole, strict=True)
        ]

    def _cut_anew(self, candidates: tuple[str, ...], joint: str, nodes: int) -> _Cut:
        rows = self.language._continuations(list(candidates), [joint] * len(candidates))
        return _Cut(tuple(map(len, rows)), cut_tries(rows, nodes))

    def _check_length(self, reader: Reader, cuts: Sequence[_Cut]) -> int:
        """The longest sequence in positions, after a check that the model has as many."""
        behind = isinstance(self.language, DecoderLM)
        lengths = [
            given + max(cut.tokens) if behind else max(given, *cut.tokens)
            for given, cut in zip(reader.lengths, cuts, strict=True)
        ]
        self.language._check_length(max(lengths))
        return max(lengths)

    def _sums(
        self, reader: Reader, tries: Sequence[Sequence[Trie]], branched: bool
    ) -> list[Tensor]:
        """Summed log-probabilities of the candidates of each prompt, fp64 on the CPU."""
        sums = [
            torch.zeros(sum(len(trie.candidates) for trie in mine), dtype=torch.float64)
            for mine in tries
        ]
        items = [(row, trie) for row, mine in enumerate(tries) for trie in mine]
        for batch in _batches(items, max(reader.lengths), self._positions):
            rows, several = [row for row, _ in batch], [trie for _, trie in batch]
            outputs_RNX = reader.outputs(rows, several, branched)
            found = self._log_probs(outputs_RNX, several)
            for row, trie, log_probs_E in zip(rows, several, found, strict=True):
                sums[row][list(trie.candidates)] = trie.sums_C(log_probs_E)
        return sums

    def _log_probs(self, outputs_RNX: Tensor, tries: Sequence[Trie]) -> tuple[Tensor, ...]:
        """Log-probabilities of the edges of each tree, fp64 on the CPU.

        Logits are made for the nodes that have edges, and for some of them at a time.
        """
        size, to_device = outputs_RNX.shape[1], self.language._to_device
        sources_E = torch.cat([trie.sources_E + size * row for row, trie in enumerate(tries)])
        targets_E = torch.cat([trie.targets_E for trie in tries])
        nodes_M, node_of_E = sources_E.unique(return_inverse=True)
        found_E = torch.empty(len(sources_E), dtype=torch.float64)
        outputs_MX = outputs_RNX.flatten(0, 1)[to_device(nodes_M)]
        step = max(1, CHUNK // self._words)
        for start in range(0, len(nodes_M), step):
            logits_MV = outputs_MX[start : start + step]
            if self._head is not None:
                logits_MV = self._head(logits_MV)
            logits_MV = logits_MV.float()
            [mine_E] = ((node_of_E >= start) & (node_of_E < start + step)).nonzero(as_tuple=True)
            at_E, words_E = map(to_device, (node_of_E[mine_E] - start, targets_E[mine_E]))
            log_probs_E = logits_MV[at_E, words_E] - logits_MV.logsumexp(1)[at_E]
            found_E[mine_E] = log_probs_E.double().cpu()
        return found_E.split([len(trie.sources_E) for trie in tries])

    @torch.no_grad()
    def _obeys(self) -> bool:
        """Whether the model reads a tree's branches as it reads each of them alone.

        A tree with branches is read in three ways: as a tree; each branch alone, which is right;
        and as a line, which is wrong. The tree must be close to the right one, in comparison with
        the wrong one, so that no tolerance depends on the model or its number format.
        """
        words = torch.linspace(0, self._words - 1, 12).long().tolist()
        one, other, third = words[1:5], [words[1], *words[5:8]], words[8:11]
        rows = [one, other, third]
        prompts_BQD = self.language.embed(self.language._pad([words[:3]], 0))
        reader = make_reader(self.language, prompts_BQD, [""])
        tree, line = (self._sums(reader, [cut_tries(rows, 99)], way)[0] for way in (True, False))
        [alone] = self._sums(reader, [cut_tries(rows, 1)], False)
        return bool((tree - alone).abs().max() <= _OBEYS * (line - alone).abs().max())


def _batches(
    items: Sequence[tuple[int, Trie]], given: int, positions: int
) -> Iterator[list[tuple[int, Trie]]]:
    """Batches of trees of similar size, each of at most so many positions, or of a single tree.

    Args:
        items: Trees, each with the row of its prompt.
        given: Positions of the longest prompt.
        positions: Positions of a batch.
    """
    batch: list[tuple[int, Trie]] = []
    for item in sorted(items, key=lambda item: -len(item[1])):
        if batch and (len(batch) + 1) * (given + len(batch[0][1])) > positions:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
