"""Ranking by likelihood: equal to a forward pass for each candidate, in every family."""

import inspect

import pytest
import torch

from modeling.language.adapters import DecoderLM, EncoderDecoderLM
from modeling.language.ranking import Ranker, Ranking
from modeling.language.trie import cut_tries, stack_nodes
from tests.modeling.families import CHATML, FAMILIES, WIDTH, model, tokenizer

ENCODER_DECODERS = ("t5", "mt5", "bart")
CANDIDATES = [
    "red", "red star", "red", "re", "a red star on the left", "a", "b", "a blue dot", "dark red",
]  # fmt: skip
PROMPTS = ["What is it? Say:", "Q", "How many are there? "]


def language(name: str, chat: str | None = None, **changes):
    family = FAMILIES[name]
    adapter = EncoderDecoderLM if name in ENCODER_DECODERS else DecoderLM
    template = {"template": "chat"} if chat else {}
    return adapter(model(family, **changes), tokenizer(family, chat), **template)


def visual(size: int) -> torch.Tensor:
    return torch.randn(size, 3, WIDTH, generator=torch.Generator().manual_seed(size))


@torch.no_grad()
def brute_force(ours, prompts, prompt: str, candidate: str) -> tuple[float, int]:
    """Minus the loss of a forward pass for one candidate, and its tokens."""
    total, count = ours.token_losses(prompts, [candidate], None, [prompt])
    return -total.item(), int(count)


def check(ours, ranker: Ranker, prompts, texts, candidates) -> None:
    rankings = ranker.rank(prompts, texts, candidates)
    for row, ranking in enumerate(rankings):
        mine = None if prompts is None else prompts[row : row + 1]
        expected = [brute_force(ours, mine, texts[row], one) for one in candidates[row]]
        sums, counts = zip(*expected, strict=True)
        assert ranking.candidates == tuple(candidates[row])
        assert ranking.tokens == counts
        assert ranking.log_probs == pytest.approx(sums, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_ranking_is_a_forward_pass_for_each_candidate(name):
    ours = language(name)
    ranker = Ranker(ours)
    assert ranker.branched == (name != "bart")  # BART counts positions, and reads rows
    check(ours, ranker, visual(3), PROMPTS, [CANDIDATES] * 3)


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "qwen3", "gemma2", "t5", "bart"])
def test_small_trees_and_passes_change_nothing(name):
    """Other candidates for each prompt, cut into several trees, which take several passes."""
    ours = language(name)
    candidates = [CANDIDATES, ["no"], [f"{n} red stars" for n in range(20)]]
    check(ours, Ranker(ours, positions=60, nodes=8), visual(3), PROMPTS, candidates)


def test_a_pass_has_as_many_positions_as_it_may():
    ours, sizes = language("llama"), []
    ranker = Ranker(ours, positions=120, nodes=8)
    ours._body.register_forward_hook(
        lambda _, __, made: sizes.append(made.last_hidden_state.shape[:2])
    )
    ranker.rank(visual(3), PROMPTS, [CANDIDATES, ["no"], [f"{n} stars" for n in range(20)]])
    prompts, *trees = sizes
    longest = 3 + len("<") + len(PROMPTS[2])  # the last position is read with the trees
    assert prompts == (3, longest - 1) and len(trees) > 4
    assert all(rows * (longest + nodes) <= 120 for rows, nodes in trees)


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "t5", "mt5"])
def test_candidates_may_follow_text_alone(name):
    ours = language(name)
    check(ours, Ranker(ours), None, PROMPTS, [CANDIDATES] * 3)


def test_a_chat_template_stands_around_prompt_and_candidate():
    ours = language("qwen2", CHATML)
    ranker = Ranker(ours)
    check(ours, ranker, visual(2), ["Is it", "", ], [CANDIDATES] * 2)  # fmt: skip
    [ranking] = ranker.rank(visual(1), [""], [["red"]])
    assert ranking.tokens == (len("red") + 1,)  # <|im_end|> counts


@pytest.mark.parametrize("name", ["llama", "qwen3", "bart"])
def test_models_that_read_rows_agree(name):
    """What a recurrent model, or one with ALiBi, would get."""
    ours = language(name)
    ranker = Ranker(ours, positions=100)
    ranker.branched = False
    check(ours, ranker, visual(3), PROMPTS, [CANDIDATES, CANDIDATES[:1], CANDIDATES[2:]])


def test_a_window_that_hides_the_prompt_is_kept():
    changes = {"sliding_window": 9, "num_hidden_layers": 2}
    changes["layer_types"] = ["sliding_attention", "full_attention"]
    ours = language("gemma3", **changes)
    check(ours, Ranker(ours), visual(3), PROMPTS, [CANDIDATES] * 3)


def test_a_model_that_does_not_obey_is_found_out(monkeypatch):
    """A mask that lets every node see all nodes in front of it, as a recurrent layer would."""
    ours = language("llama")
    body, forward = ours._body, ours._body.forward

    def careless(*given, attention_mask=None, **more):
        return forward(*given, **more)

    careless.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(body, "forward", careless)
    ranker = Ranker(ours)
    assert not ranker.branched
    check(ours, ranker, visual(3), PROMPTS, [CANDIDATES] * 3)


@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
def test_bf16_reads_trees_too(name):
    ours = language(name)
    ours.model.to(torch.bfloat16)
    ranker = Ranker(ours)
    assert ranker.branched
    [ranking] = ranker.rank(visual(1), PROMPTS[:1], [CANDIDATES])
    expected = [brute_force(ours, visual(1), PROMPTS[0], one)[0] for one in CANDIDATES]
    assert ranking.log_probs == pytest.approx(expected, rel=0.05, abs=0.3)


def test_a_t5_with_a_tied_and_scaled_matrix_agrees():
    ours = language("t5", tie_word_embeddings=True, scale_decoder_outputs=True)
    check(ours, Ranker(ours), visual(2), PROMPTS[:2], [CANDIDATES] * 2)


def test_long_candidates_are_cut_as_training_cuts_them():
    ours = language("llama")
    ours.max_text = 6
    check(ours, Ranker(ours), visual(1), PROMPTS[:1], [["a red star", "a red dot"]])


def test_the_prompt_is_read_once_and_so_is_the_encoder():
    ours, calls = language("t5"), []
    ours.model.get_encoder().register_forward_hook(lambda *_: calls.append("encoder"))
    ranker = Ranker(ours, positions=60, nodes=8)
    calls.clear()
    ranker.rank(visual(3), PROMPTS, [CANDIDATES] * 3)
    assert calls == ["encoder"]


def test_scores_order_and_ties():
    ranking = Ranking(("yes", "no", "yes", "not at all"), (-3.0, -4.0, -3.0, -5.0), (1, 1, 1, 4))
    assert ranking.scores() == [-3.0, -4.0, -3.0, -5.0]
    assert ranking.order() == [0, 2, 1, 3] and ranking.best() == "yes"
    assert ranking.scores("mean") == [-3.0, -4.0, -3.0, -1.25]
    assert ranking.best("mean") == "not at all"
    with pytest.raises(ValueError, match="'longest': choose sum or mean"):
        ranking.scores("longest")


def test_mistakes_are_named():
    ranker = Ranker(language("gpt2"))
    with pytest.raises(ValueError, match="1 lists of candidates for 2 prompts"):
        ranker.rank(None, ["a", "b"], [["c"]])
    with pytest.raises(ValueError, match="candidates of prompt 1 are"):
        ranker.rank(None, ["a", "b"], [["c"], []])
    with pytest.raises(ValueError, match="prompt 0 are 'yes'"):
        ranker.rank(None, ["a"], ["yes"])
    with pytest.raises(ValueError, match="nothing to continue"):
        ranker.rank(None, ["a", ""], [["c"]] * 2)
    with pytest.raises(ValueError, match="language model has 64"):
        ranker.rank(visual(1), ["a" * 60], [["b" * 9]])
    assert ranker.rank(visual(0), [], []) == []


# ------------------------------------------------------------------------------ the trees


def test_a_common_beginning_is_one_branch():
    [trie] = cut_tries([[5, 6, 1], [5, 1], [7, 1], [5, 6, 1]], limit=9)
    assert sorted(trie.tokens_N.tolist()) == [0, 5, 6, 7]
    assert len(trie.targets_E) == 6  # 5, its end, 6, its end, 7, its end
    log_probs = torch.arange(1.0, 7).double()
    by_hand = {
        (int(trie.tokens_N[source]), int(target)): log_prob.item()
        for source, target, log_prob in zip(trie.sources_E, trie.targets_E, log_probs, strict=True)
    }
    expected = [
        by_hand[0, 5] + by_hand[5, 6] + by_hand[6, 1],
        by_hand[0, 5] + by_hand[5, 1],
        by_hand[0, 7] + by_hand[7, 1],
    ]
    sums = dict(zip(trie.candidates, trie.sums_C(log_probs).tolist(), strict=True))
    assert [sums[0], sums[1], sums[2]] == expected and sums[3] == sums[0]
    nodes = dict(zip(trie.tokens_N.tolist(), trie.sees_NN(), strict=True))
    assert trie.tokens_N[nodes[6]].tolist() == [0, 5, 6]
    assert trie.tokens_N[nodes[7]].tolist() == [0, 7]


def test_trees_hold_every_candidate_once_and_are_small():
    rows = [[*map(int, f"{n:03b}"), 9] for n in range(8)] * 2
    tries = cut_tries(rows, limit=6)
    assert sorted(n for trie in tries for n in trie.candidates) == list(range(16))
    assert max(map(len, tries)) <= 6 + 4 and len(tries) == 2
    assert [len(trie.candidates) for trie in cut_tries(rows, limit=1)] == [1] * 16
    assert len(cut_tries([list(range(20))], limit=6)[0]) == 20  # one candidate is never split
    assert cut_tries([], limit=6) == []


def test_padding_sees_itself_alone():
    small, large = cut_tries([[5, 1]], 9)[0], cut_tries([[5, 6, 1], [7, 1]], 9)[0]
    nodes = stack_nodes([small, large])
    assert nodes.tokens_RN.tolist() == [[0, 5, 0, 0], [0, 5, 6, 7]]
    assert nodes.sees_RNN[0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
