"""Arguments that public functions share are checked and completed in one place."""

import numpy as np
import pytest

from matfree.arguments import block_size_for, order, require_whole, slices


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "4"])
def test_a_count_must_be_a_positive_integer(count):
    with pytest.raises(ValueError, match="num_probes must be a whole number, at least 1: got"):
        require_whole("num_probes", count)


@pytest.mark.parametrize("count", [None, 1, np.int64(3)])
def test_none_and_integers_of_other_libraries_are_counts(count):
    require_whole("num_probes", count)


def test_blocks_of_a_known_total_have_nearly_equal_widths():
    assert block_size_for(1 << 16, 5, 100) == 5  # the user's choice
    assert block_size_for(1 << 16, None) == 32
    assert block_size_for(1 << 16, None, 33) == 20  # 20 + 13, not 32 + 1
    assert block_size_for(1 << 26, None) == 1


def test_slices_cover_the_range_once():
    assert list(slices(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(slices(7, 3, 6)) == [slice(6, 7)]


def test_eigenvalues_are_ordered_by_what_is_wanted():
    values = np.array([1.0, -5.0, 3.0, 0.5])
    expected = {"LM": [-5, 3], "LA": [3, 1], "SA": [-5, 0.5], "BE": [3, -5]}
    for which, wanted in expected.items():
        np.testing.assert_array_equal(values[order(values, which, 2)], wanted)
    assert sorted(order(values, "BE", 9)) == [0, 1, 2, 3]  # no index twice
