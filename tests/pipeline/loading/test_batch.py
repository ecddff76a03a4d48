import gc

import torch

from pipeline.loading.batch import Batch, Slots, empty_squares


def test_a_slot_is_free_again_when_nothing_refers_to_it():
    slots = Slots(2, batch=3, size=4)
    first, second = slots.take(), slots.take()
    assert {first, second} == {0, 1} and slots.take() is None
    slots.squares(first).fill_(7)
    handed = slots.handed(first)
    part = handed[1:, 0].numpy()
    del handed
    gc.collect()
    assert slots.take() is None and (part == 7).all()
    del part
    gc.collect()
    assert slots.take() == first
    slots.handed(second)
    assert slots.take() == second and slots.take() is None


def test_slots_do_not_overlap():
    slots = Slots(3, batch=2, size=5)
    for slot in range(3):
        slots.squares(slot).fill_(slot + 1)
    for slot in range(3):
        squares = slots.squares(slot)
        assert squares.shape == (2, 3, 5, 5) and (squares == slot + 1).all()


def test_pixels_are_in_planes():
    """However a batch lies in memory, an encoder is given the same."""
    squares = empty_squares(2, 4)
    squares.copy_(torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4))
    none = torch.empty(0)
    layouts = (squares, squares.contiguous())
    assert not squares.is_contiguous()
    pixels = [Batch(x, [], [], none, [], none, {}, []).pixels_B3HW() for x in layouts]
    assert pixels[0].is_contiguous() and torch.equal(*pixels)
