"""Features that are shared in memory are those of the source, and each is read once."""

import numpy as np
import pytest

from tedm.features.shared import SharedFeatures
from tedm.heads import ArrayFeatures

SIZE = (8, 8)
BYTES_PER_ROW = 2 * (3 * 2 * 2 + 2 * 4 * 4)  # of one image and timestep


class Counted(ArrayFeatures):
    """Counts how often each value is read."""

    def __init__(self):
        rng = np.random.default_rng(0)
        shapes = {"up0": (3, 2, 2), "up1": (2, 4, 4)}
        super().__init__(
            {
                (t, layer): rng.normal(size=(9, *s)).astype(np.float16)
                for t in (1, 10)
                for layer, s in shapes.items()
            },
            SIZE,
        )
        self.count = {key: np.zeros(9, int) for key in self.arrays}

    def read(self, rows, timestep, layers=None, view=0):
        for layer in layers or self.layer_shapes:
            np.add.at(self.count[timestep, layer], list(rows), 1)
        return super().read(rows, timestep, layers, view)


@pytest.mark.parametrize("memory", [0, 3 * BYTES_PER_ROW, 2**20])
def test_values_are_those_of_the_source_whatever_was_read_before(memory):
    source, rng = Counted(), np.random.default_rng(1)
    shared = SharedFeatures(source, memory)
    for _ in range(60):
        rows = rng.integers(0, 9, rng.integers(0, 6)).tolist()
        timestep = int(rng.choice([1, 10]))
        layers = [None, ["up1"], ["up1", "up0"]][rng.integers(3)]
        found, expected = shared.read(rows, timestep, layers), source.arrays
        assert list(found) == (layers or ["up0", "up1"])
        for layer, values in found.items():
            np.testing.assert_array_equal(values, expected[timestep, layer][rows])
            assert values.dtype == np.float16
            values[...] = 0  # the reader's own
    assert shared.bytes <= memory


def test_each_value_is_read_once_where_all_fit():
    source = Counted()
    shared = SharedFeatures(source, 2**20)
    for rows in ([0], [0, 1, 2], [2, 1, 0, 5], range(9)):
        for timestep in (1, 10):
            shared.read(rows, timestep)
    assert all((count == 1).all() for count in source.count.values())
    assert not shared.full


def test_what_does_not_fit_is_read_again_and_what_fits_is_not():
    source = Counted()
    shared = SharedFeatures(source, 4 * BYTES_PER_ROW)
    for _ in range(3):
        for row in range(9):
            shared.read([row], 1)
    assert shared.full
    for count in (source.count[1, "up0"], source.count[1, "up1"]):
        assert count[:4].tolist() == [1] * 4
        assert count[6:].tolist() == [3] * 3


def test_it_answers_what_the_source_answers():
    shared = SharedFeatures(Counted(), 0)
    assert (len(shared), shared.image_size, shared.timesteps) == (9, SIZE, (1, 10))
    assert getattr(shared, "backbone_digest", "none") == "none"
