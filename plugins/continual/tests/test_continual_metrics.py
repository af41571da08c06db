"""What an accuracy matrix says, against matrices small enough to do by hand."""

import pytest

from dcf_continual.metrics import accuracy_after, average_incremental, backward_transfer, forgetting

# Group 0 falls from 0.9 to 0.5 and back to 0.6; group 1 rises from 0.4 to 0.7.
MATRIX = [[0.9], [0.5, 0.4], [0.6, 0.7, 0.8]]


def test_every_test_image_weighs_the_same():
    assert accuracy_after(MATRIX, [100, 100, 100]) == pytest.approx([0.9, 0.45, 0.7])
    assert accuracy_after(MATRIX, [100, 300, 600]) == pytest.approx([0.9, (50 + 120) / 400, (60 + 210 + 480) / 1000])


def test_average_is_the_mean_over_steps():
    assert average_incremental([0.9, 0.45, 0.7]) == pytest.approx(2.05 / 3)


def test_forgetting_is_from_the_best_before_and_transfer_from_the_first():
    # Group 0: best before the end 0.9, first 0.9. Group 1: only 0.4 before the end.
    assert forgetting(MATRIX) == pytest.approx(((0.9 - 0.6) + (0.4 - 0.7)) / 2)
    assert backward_transfer(MATRIX) == pytest.approx(((0.6 - 0.9) + (0.7 - 0.4)) / 2)
    # They differ where an accuracy rises before it falls.
    rising = [[0.5], [0.8, 0.6], [0.4, 0.6, 0.9]]
    assert forgetting(rising) == pytest.approx((0.4 + 0.0) / 2)
    assert backward_transfer(rising) == pytest.approx((-0.1 + 0.0) / 2)


def test_one_step_forgets_nothing():
    assert forgetting([[0.5]]) is None
    assert backward_transfer([[0.5]]) is None


@pytest.mark.parametrize("matrix", [[], [[0.1, 0.2]], [[0.1], [0.2]]])
def test_a_matrix_has_a_row_for_each_step(matrix):
    with pytest.raises(ValueError, match="row t of an accuracy matrix"):
        forgetting(matrix)
