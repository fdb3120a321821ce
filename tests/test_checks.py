"""Numbers in messages agree with their nouns."""

import pytest

from isoconv._checks import count_of


@pytest.mark.parametrize(("n", "said"), [(0, "0 axes"), (1, "1 axis"), (2, "2 axes"), (1_200, "1,200 axes")])
def test_a_number_agrees_with_its_noun(n: int, said: str) -> None:
    assert count_of(n, "axis", "axes") == said
    assert count_of(n, "error") == said.replace("axis", "error").replace("axes", "errors")
