"""Short codes: what people do to them on the way from one screen to the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.codes import ALPHABET, NAMEPLATES, Code, code_of, read_code
from lepton.mesh.errors import UsageError

codes = st.builds(code_of, st.integers(0, NAMEPLATES - 1), st.integers(0, 2**40 - 1))


def test_a_code_is_short_and_names_its_invite() -> None:
    assert str(code_of(0, 0)) == "0000-0000-0000"
    code = code_of(NAMEPLATES - 1, 2**40 - 2)
    assert code == Code("ZZZ", "ZZZZZZZY")
    assert len(str(code)) == 14
    assert "ZZY" not in repr(code)  # a password does not get into a log


@given(codes)
def test_what_is_written_is_read(code: Code) -> None:
    assert read_code(str(code)) == code


@given(codes, st.randoms(use_true_random=False))
def test_hands_may_be_careless(code: Code, rng: object) -> None:
    text = str(code)
    alike = text.replace("0", "O").replace("1", "l")
    for typed in (text.lower(), alike, f"  {text}\n", text.replace("-", ""), " ".join(text), text.replace("-", "–")):
        assert read_code(typed) == code


@given(codes)
def test_every_wrong_character_and_every_exchange_of_two_is_seen(code: Code) -> None:
    """A property of the check, for all codes: any one substitution and any one transposition, however far apart."""
    plain = str(code).replace("-", "")
    wrong = {plain[:at] + letter + plain[at + 1 :] for at in range(len(plain)) for letter in ALPHABET + "U!é"}
    for one in range(len(plain)):
        for other in range(one + 1, len(plain)):
            letters = list(plain)
            letters[one], letters[other] = letters[other], letters[one]
            wrong.add("".join(letters))
    wrong |= {plain[:at] + plain[at + 1 :] for at in range(len(plain))}  # left out
    wrong |= {plain[:at] + plain[at] + plain[at:] for at in range(len(plain))}  # twice
    for mistyped in wrong - {plain}:
        with pytest.raises(UsageError, match="a character of it is wrong: it has twelve letters and digits"):
            read_code(mistyped)


@pytest.mark.parametrize(
    "text", ["", " ", "hello", "0" * 10_000, "-" * 70 + "0000-0000-0000", "ÀÀÀÀ-0000-0000", "²" * 12]
)
def test_what_is_no_code_is_told_so(text: str) -> None:
    with pytest.raises(UsageError, match="not an invite code"):
        read_code(text)


@given(st.text(max_size=80))
def test_any_text_is_a_code_or_a_mistake(text: str) -> None:
    try:
        read_code(text)
    except UsageError:
        return
