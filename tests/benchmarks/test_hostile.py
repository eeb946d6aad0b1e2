"""A small part of benchmarks/hostile.py: what must be refused is, in one line, and what people have is taken."""

from __future__ import annotations

import pytest
from hostile import Case, Outcome, all_cases, run_cases, verdict

# By door: an ordinary file first, then what once was wrong or would be the worst.
SMALL = {
    "predict": [
        *("ordinary.jpg", "half.jpg", "says_large.png", "line_400000.png", "loop.jpg", "pipe.jpg"),
        *("\udce9t\udce9.jpg", "turned_99.jpg"),
    ],
    "mano": ["ordinary.pkl", "hidden.pkl", "deeper.pkl", "says_large.pkl", "memo.pkl"],
}


@pytest.mark.parametrize("door", SMALL)
def test_a_door_takes_what_people_have_and_refuses_the_rest_in_one_line(door, tmp_path):
    chosen = [case for case in all_cases(door) if case.name in SMALL[door]]
    assert len(chosen) == len(SMALL[door])
    wrong = [
        f"{case.name}: {judged}: {outcome}"
        for case, outcome, judged in run_cases(chosen, tmp_path / "h")
        if judged != "right"
    ]
    assert not wrong, "\n".join(wrong)


def test_a_verdict_is_wrong_for_every_reason_it_can_be():
    case, ordinary = Case("predict", "x.jpg", "", "refused", lambda path: None), Outcome("answered", 0.5, 100, "")
    assert verdict(case, Outcome("refused", 2.4, 390, ""), ordinary) == "right"
    assert verdict(case, Outcome("answered", 0.1, 1, ""), ordinary) == "answered, not refused"
    assert verdict(case, Outcome("crashed", 0.1, 1, ""), ordinary) == "crashed"
    assert verdict(case, Outcome("killed (-11)", 0, 0, ""), ordinary) == "killed (-11)"
    assert verdict(case, Outcome("refused", 2.6, 1, ""), ordinary) == "2.6 s"
    assert verdict(case, Outcome("refused", 0.1, 500, ""), ordinary) == "500 MB"
    assert verdict(case._replace(large=True), Outcome("refused", 9, 900, ""), ordinary) == "right"
    assert verdict(case._replace(expected="either"), Outcome("answered", 0.1, 1, ""), ordinary) == "right"
