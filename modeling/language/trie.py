"""Candidate texts as trees of tokens: a beginning that several candidates share stands there once.

Shapes: N nodes of a tree, E edges, C candidates, L tokens of the longest candidate, R trees of a
batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Trie:
    """A tree of some candidates of one prompt.

    Node 0 is the root, the position in front of every first token. Each other node is a token that
    has a successor. An edge is a token after a node, the probability of which is wanted; a last
    token has an edge and no node.

    Attributes:
        candidates: Indices of the candidates in the list that was cut.
        tokens_N: Token ids of the nodes, parents first; 0 for the root.
        parents_N: Node in front of each node; 0 for the root.
        depths_N: Number of nodes between the root and each node; 0 for the root.
        sources_E: Node in front of each edge's token.
        targets_E: Token id of each edge.
        paths_CL: Edges of each candidate, filled up with E.
    """

    candidates: tuple[int, ...]
    tokens_N: Tensor
    parents_N: Tensor
    depths_N: Tensor
    sources_E: Tensor
    targets_E: Tensor
    paths_CL: Tensor

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.tokens_N)

    def sees_NN(self) -> Tensor:
        """Whether a node (row) may see another (column): itself, or one on the way to the root."""
        nodes_N = torch.arange(len(self))
        sees_NN = torch.eye(len(self), dtype=torch.bool)
        above_N = nodes_N
        for _ in range(int(self.depths_N.max())):
            above_N = self.parents_N[above_N]
            sees_NN[nodes_N, above_N] = True
        return sees_NN

    def sums_C(self, log_probs_E: Tensor) -> Tensor:
        """Sum over the tokens of each candidate, from the log-probabilities of the edges."""
        padded = torch.cat((log_probs_E, log_probs_E.new_zeros(1)))
        return padded[self.paths_CL].sum(1)


class _Growing:
    """A tree to which candidates are added."""

    def __init__(self) -> None:
        self.candidates: list[int] = []
        self.nodes: list[tuple[int, int, int]] = [(0, 0, 0)]  # token, parent, depth
        self._node_of: dict[tuple[int, int], int] = {}  # by parent and token
        self._edge_of: dict[tuple[int, int], int] = {}
        self._paths: list[list[int]] = []

    def lacks(self, row: Sequence[int]) -> int:
        """Number of nodes that a candidate would add."""
        node = 0
        for depth, token in enumerate(row[:-1]):
            found = self._node_of.get((node, token))
            if found is None:
                return len(row) - 1 - depth
            node = found
        return 0

    def add(self, candidate: int, row: Sequence[int]) -> None:
        """Add a candidate of at least one token."""
        node, path = 0, []
        for depth, token in enumerate(row, start=1):
            step = (node, token)
            path.append(self._edge_of.setdefault(step, len(self._edge_of)))
            if depth == len(row):
                break
            if step not in self._node_of:
                self._node_of[step] = len(self.nodes)
                self.nodes.append((token, node, depth))
            node = self._node_of[step]
        self.candidates.append(candidate)
        self._paths.append(path)

    def done(self) -> Trie:
        tokens_N, parents_N, depths_N = torch.tensor(self.nodes).T.contiguous()
        sources_E, targets_E = torch.tensor(list(self._edge_of)).T.contiguous()
        paths = [torch.tensor(path) for path in self._paths]
        return Trie(
            tuple(self.candidates),
            tokens_N,
            parents_N,
            depths_N,
            sources_E,
            targets_E,
            pad_sequence(paths, batch_first=True, padding_value=len(self._edge_of)),
        )


def cut_tries(rows: Sequence[Sequence[int]], limit: int) -> list[Trie]:
    """Trees that hold all candidates, each in one of them; several trees are of about one size.

    Candidates that begin alike come into one tree, so that little is computed twice.

    Args:
        rows: Token ids of each candidate, the end token included.
        limit: Number of nodes of a tree, which the longest candidate may exceed; 1 gives each
            candidate a tree of its own.
    """
    order = sorted(range(len(rows)), key=lambda candidate: list(rows[candidate]))
    if limit > 1 and rows:
        whole = _Growing()
        for candidate in order:
            whole.add(candidate, rows[candidate])
        if len(whole.nodes) <= limit:
            return [whole.done()]
        share = math.ceil(len(whole.nodes) / math.ceil(len(whole.nodes) / limit))
        limit = share + max(map(len, rows))
    tries: list[Trie] = []
    growing = _Growing()
    for candidate in order:
        row = rows[candidate]
        full = limit <= 1 or len(growing.nodes) + growing.lacks(row) > limit
        if growing.candidates and full:
            tries.append(growing.done())
            growing = _Growing()
        growing.add(candidate, row)
    return [*tries, growing.done()] if growing.candidates else tries


@dataclass(frozen=True)
class Nodes:
    """The nodes of several trees, padded to the largest.

    Attributes:
        tokens_RN: Token ids; 0 for roots and padding.
        depths_RN: Depths; 0 for roots and padding.
        sees_RNN: Whether a node (row) may see another (column); padding sees itself.
    """

    tokens_RN: Tensor
    depths_RN: Tensor
    sees_RNN: Tensor


def stack_nodes(tries: Sequence[Trie]) -> Nodes:
    """The nodes of the trees as one batch, on the CPU."""
    most = max(map(len, tries))
    sees_RNN = torch.eye(most, dtype=torch.bool).repeat(len(tries), 1, 1)
    made: dict[int, Tensor] = {}  # trees are shared by the prompts that share their candidates
    for row, trie in enumerate(tries):
        size = len(trie)
        if id(trie) not in made:
            made[id(trie)] = trie.sees_NN()
        sees_RNN[row, :size, :size] = made[id(trie)]
    return Nodes(
        pad_sequence([trie.tokens_N for trie in tries], batch_first=True),
        pad_sequence([trie.depths_N for trie in tries], batch_first=True),
        sees_RNN,
    )
