"""Texts as tokens: what becomes of every text, and which of its tokens are to be predicted."""

import numpy as np
import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.data import Loading, Masking, TextEvalLoader, TextSource, TextTrainLoader, TokenSource, cut_into_tokens
from kdcli.machine.team import Team

PAD, CLS, SEP, MASK = 0, 2, 3, 4
TEXTS = (
    "the film was good",
    "",
    "a very dull plot with a weak end and quite poor music and a scene with the actor",
    "lovely",
)


def source_of(texts=TEXTS):
    return TextSource(tuple(texts), (-1,) * len(texts), split="train")


def masking_of(probability=0.15, seed=0):
    return Masking(probability, MASK, frozenset({PAD, 1, CLS, SEP, MASK}), 1000, seed)


@pytest.fixture(scope="module")
def masked(make_tokenizer):
    return make_tokenizer(kind="masked")


@pytest.fixture(scope="module")
def causal(make_tokenizer):
    return make_tokenizer(kind="gpt2")


@pytest.mark.parametrize("max_length", [3, 7, 64])
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_no_token_is_lost_and_no_piece_has_two_texts(kind, max_length, request):
    """The pieces' tokens, special ones left out, are each text's one after another."""
    tokenizer = request.getfixturevalue(kind)
    masking = masking_of() if kind == "masked" else None
    tokenizer.pad_token = "[PAD]"
    pieces = cut_into_tokens(source_of(), tokenizer, max_length=max_length, masking=masking).pieces
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    room = max_length - (2 if kind == "masked" else 0)
    expected = [ids[start : start + room] for ids in whole for start in range(0, len(ids), room)]
    if kind == "causal":
        expected = [ids for ids in expected if len(ids) > 1]
    if kind == "masked":
        expected = [[CLS, *ids, SEP] for ids in expected]
    assert [piece.tolist() for piece in pieces] == expected
    assert all(len(piece) <= max_length for piece in pieces)
    assert any(len(ids) > room for ids in whole) == (max_length < 64)


def test_texts_without_a_token_to_predict_are_refused(masked, causal):
    with pytest.raises(UserError, match="The train texts have no tokens to predict"):
        cut_into_tokens(source_of(["", ""]), masked, max_length=8, masking=masking_of())
    (word,) = (word for word in ("film",) if len(causal(word)["input_ids"]) == 1)
    with pytest.raises(UserError, match="no tokens to predict"):
        cut_into_tokens(source_of([word]), causal, max_length=8, masking=None)


def test_special_tokens_leave_room_for_a_text(masked):
    with pytest.raises(UserError, match="max_length 2 leaves no room for a text beside 2 special tokens"):
        cut_into_tokens(source_of(), masked, max_length=2, masking=masking_of())


def test_a_tokenizer_that_can_not_cut_is_refused(tmp_path):
    from transformers import ByT5Tokenizer

    with pytest.raises(UserError, match="ByT5Tokenizer can't cut long texts"):
        cut_into_tokens(source_of(), ByT5Tokenizer(), max_length=8, masking=None)


def test_each_next_token_is_predicted(causal):
    pieces = [np.array([5, 6, 7, 8]), np.array([9, 10])]
    batch = TokenSource(pieces, pad_token=PAD, masking=None, split="train").batch([1, 0])
    assert batch.input_ids.tolist() == [[9, 10, PAD, PAD], [5, 6, 7, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.predicted.tolist() == [[True, False, False, False], [True, True, True, False]]
    assert batch.targets.tolist() == [10, 6, 7, 8]
    assert (batch.samples.tolist(), len(batch), batch.skipped) == ([1, 0], 2, [])
    assert [x.dtype for x in (batch.input_ids, batch.attention_mask, batch.predicted, batch.targets, batch.samples)] == [
        torch.int64, torch.int64, torch.bool, torch.int64, torch.int64,
    ]  # fmt: skip


def test_masked_tokens_by_their_positions():
    """The targets are the tokens that stood there, row by row, and nothing else has changed."""
    pieces = [np.array([CLS, *range(10 * row, 10 * row + 8), SEP]) for row in range(1, 6)]
    source = TokenSource(pieces, pad_token=PAD, masking=masking_of(0.5), split="train")
    assert source.num_tokens == 50
    batch = source.batch([4, 0, 2], epoch=3)
    original = torch.from_numpy(np.stack([pieces[index] for index in (4, 0, 2)]))
    assert batch.predicted.sum(dim=1).tolist() == [4, 4, 4]
    assert torch.equal(batch.targets, original[batch.predicted])
    assert torch.equal(batch.input_ids[~batch.predicted], original[~batch.predicted])
    assert not batch.predicted[:, [0, -1]].any()


def test_of_the_predicted_tokens_eight_in_ten_are_masked():
    """And one in ten is exchanged for any token, one stays: Devlin et al., at 15 % of 400,000 tokens."""
    ids = np.full(4000, 500)
    ids[::10] = SEP
    masking = masking_of()
    counts = np.zeros(4)
    exchanged = []
    for index in range(100):
        seen, predicted = masking.draw(ids, index, 0)
        assert predicted.sum() == 540  # 15 % of the 3600 that are not special
        assert (ids[predicted] == 500).all()
        assert (seen[~predicted] == ids[~predicted]).all()
        found = seen[predicted]
        counts += [(found == MASK).sum(), (found == 500).sum(), ((found != MASK) & (found != 500)).sum(), len(found)]
        exchanged.extend(found[(found != MASK) & (found != 500)])
    # Standard errors are 0.0017 and 0.0013; of 1000 tokens drawn at random 2 look as if they were none.
    np.testing.assert_allclose(counts[:3] / counts[3], [0.8, 0.1, 0.1], atol=0.007)
    assert len(set(exchanged)) > 980
    assert 0 <= min(exchanged) < max(exchanged) <= 999


def test_at_least_one_token_is_predicted():
    for length in (1, 2, 3):
        _, predicted = masking_of(0.01).draw(np.array([CLS, *range(10, 10 + length), SEP]), 0, 0)
        assert predicted.sum() == 1
    predicted = np.stack([masking_of().draw(np.array([CLS, 10, 11, 12, SEP]), index, 0)[1] for index in range(60)])
    assert (predicted.sum(axis=0) > 0).tolist() == [False, True, True, True, False]


def test_masks_are_drawn_by_seed_epoch_and_index_alone():
    ids = np.arange(10, 60)

    def drawn(seed=0, index=0, epoch=0):
        seen, predicted = masking_of(seed=seed).draw(ids, index, epoch)
        return seen.tolist(), predicted.tolist()

    first = drawn()
    assert drawn() == first
    assert len({str(drawn(**{name: 1})) for name in ("seed", "index", "epoch")} | {str(first)}) == 4
    # In evaluation they are always the same, so that epochs and runs compare.
    assert drawn(epoch=None) == drawn(seed=9, epoch=None)
    assert drawn(epoch=None) != drawn(index=1, epoch=None)
    assert drawn(epoch=None) != first


def test_masks_do_not_depend_on_the_batch_or_its_process():
    pieces = [np.arange(10, 10 + 6 * (1 + row % 3)) for row in range(12)]
    source = TokenSource(pieces, pad_token=PAD, masking=masking_of(0.3), split="train")

    def seen(loaders):
        found = {}
        for batches in loaders:
            for batch in batches:
                rows = zip(batch.samples.tolist(), batch.input_ids, batch.attention_mask, strict=True)
                found |= {index: ids[: mask.sum()].tolist() for index, ids, mask in rows}
        return found

    def train(size, world, epoch):
        loaders = [TextTrainLoader(source, Loading(size, 1, team=Team(rank, world))) for rank in range(world)]
        return seen(loader.epoch(epoch) for loader in loaders)

    assert len(train(4, 1, 2)) == 12
    assert train(4, 1, 2) == train(6, 2, 2) != train(4, 1, 3)
    whole = seen([TextEvalLoader(source, Loading(5))])
    assert whole == seen([TextEvalLoader(source, Loading(3))])
    assert whole != train(4, 1, 2)
