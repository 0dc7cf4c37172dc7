"""`make verify`: a cell from scratch, in a process of its own, is the cell again; what is not is told."""

from dataclasses import replace

import pytest

from taid.studies import capacity, jobs, verify

RUN = capacity.Run("smoke", "taid", "pythia-410m", 0, 1e-2)


def committed(values, **changes):
    rows = capacity.rows(RUN, "table6", values, 1.0)
    return [replace(row, **changes) for row in rows]


def test_the_first_cell_is_the_first_seeds():
    rows = committed({("held_out_loss", "base"): 2.0})
    later = capacity.rows(replace(RUN, seed=3), "table6", {("held_out_loss", "base"): 3.0}, 1.0)
    assert verify.first_cell([*later, *rows], "table6", "taid") == rows
    assert verify.run_of(rows[0]) == RUN
    with pytest.raises(jobs.Refused, match="no rows of kl in table6"):
        verify.first_cell(rows, "table6", "kl")


def test_rows_of_another_setting_are_refused():
    [row] = committed({("held_out_loss", "base"): 2.0}, config_hash="0", commit="c0ffee")
    with pytest.raises(jobs.Refused, match="another setting; check out c0ffee"):
        verify.run_of(row)


def test_differences_are_told_in_deviations_over_seeds():
    """By hand: seeds at 2.0 and 2.2 have s = 0.1414; a second run at 2.1 lies 0.1 away, 0.7 of them."""
    rows = committed({("held_out_loss", "base"): 2.0, ("train_seconds", "base"): 9.0})
    others = capacity.rows(replace(RUN, seed=1), "table6", {("held_out_loss", "base"): 2.2}, 1.0)
    lines = verify.compared(rows, {("held_out_loss", "base"): 2.1}, [*rows, *others])
    assert len(lines) == 2 and lines[1].split()[2:] == ["2.0000", "2.1000", "0.1000", "0.7"]


@pytest.mark.slow
def test_a_cell_from_scratch_is_the_same_to_the_last_bit(cache, tmp_path):
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        [(_, values)] = jobs.run(verify.again, [(RUN, "table6", tmp_path / name)], 1, "verify")
        found.append({key: value for key, value in values.items() if key[0] != verify.TRAINING})
    assert found[0] == found[1] and len(found[0]) > 3
