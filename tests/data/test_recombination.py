"""Rows with new combinations of features: what one feature changes of a form is learned from some words, for others."""

from pathlib import Path

import pytest

from hf_rnn_seq2seq.data.recombination import Change, Recombiner, recombine
from hf_rnn_seq2seq.errors import DataError
from tests.helpers.script_runs import run

# Nouns have both numbers in the nominative; adjectives have the plural alone.
TABLE = [
    row
    for word in ("book", "dog", "word", "pen")
    for row in ((word, f"{word}os", "N;NOM;PL"), (word, f"{word}o", "N;NOM;SG"), (word, f"{word}osmu", "N;DAT;PL"))
]
TABLE += [("big", "bigos", "ADJ;NOM;PL"), ("red", "redosmu", "ADJ;DAT;PL")]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("books", "book", ("s", "", False, True)),
        ("unhappy", "happy", ("un", "", True, False)),
        ("houses", "housos", ("e", "o", False, False)),
        ("go", "went", ("go", "went", True, True)),
        ("aa", "aaa", ("", "a", False, True)),
        ("same", "same", ("", "", False, True)),
    ],
)
def test_a_change_lies_between_what_both_forms_share(before: str, after: str, change: tuple) -> None:
    assert Change.between(before, after) == change
    fits_some_forms_alone = before != after and not (change[2] and change[3])
    assert Change.between(before, after).applied(before) == (after if fits_some_forms_alone else None)


def test_a_change_inside_is_made_nearest_to_the_end() -> None:
    assert Change("e", "o", False, False).applied("seven eels") == "seven eols"
    assert Change("e", "o", False, False).applied("eat") is None, "its start is no inside"
    assert Change("", "o", False, False).applied("seven") is None, "nothing may stand anywhere"
    assert Change("un", "", True, False).applied("happy") is None


def test_what_a_feature_changes_of_some_words_is_changed_of_others() -> None:
    found = {(TABLE[number][0], features, form) for number, form, features in recombine(TABLE, 100, 0)}
    # From the plural that adjectives share with nouns, and from the dative plural; but `redosmu` does not end in s.
    datives = {(word, "N;DAT;SG", f"{word}omu") for word in ("book", "dog", "word", "pen")}
    assert found == {*datives, ("big", "ADJ;NOM;SG", "bigo")}
    drawn = recombine(TABLE, 2, 3)
    assert drawn == recombine(TABLE, 2, 3) != recombine(TABLE, 2, 4) and len(drawn) == 2


def test_a_feature_whose_change_the_words_do_not_foretell_is_not_used() -> None:
    """Each word has a plural of its own: what the others show is wrong for it."""
    odd = [(f"w{mark}", f"w{mark}", "N;SG") for mark in "abcd"] + [
        (f"w{mark}", f"w{mark}{mark}", "N;PL") for mark in "abcd"
    ]
    rows = [*odd, ("x", "x", "V;SG")]
    assert Recombiner(rows).precision["SG", "PL"] == 0
    with pytest.raises(DataError, match="none of 9 rows gives a new combination of features"):
        recombine(rows, 5, 0)
    seen_once = [("a", "a", "N;SG"), ("a", "as", "N;PL"), ("b", "b", "V;SG")]
    with pytest.raises(DataError, match="none of 3 rows"):
        recombine(seen_once, 5, 0)


def test_evidence_from_the_most_similar_features_comes_first() -> None:
    """After a dative the plural is written otherwise than after a nominative."""
    rows = [(w, f"{w}i", "N;NOM;PL") for w in "abcd"] + [(w, f"{w}", "N;NOM;SG") for w in "abcd"]
    rows += [(w, f"{w}om", "N;DAT;PL") for w in "efgh"] + [(w, f"{w}u", "N;DAT;SG") for w in "efgh"]
    rows += [("z", "zom", "ADJ;DAT;PL"), ("y", "yi", "ADJ;NOM;PL")]
    found = {(rows[number][0], features): form for number, form, features in recombine(rows, 100, 0)}
    assert found[("z", "ADJ;DAT;SG")] == "zu" and found[("y", "ADJ;NOM;SG")] == "y"


def test_less_similar_evidence_counts_where_there_is_no_other() -> None:
    far = [(w, f"{w}{end}", f"V;{case};PL") for w in "pqrs" for end, case in (("a", "GEN"), ("e", "DAT"))]
    far += [("w", "wa", "ADJ;GEN;SG"), ("v", "va", "SG;GEN;ADJ"), ("t", "ta", "ADJ;GEN;SG")]
    near = [(w, f"{w}{end}", f"N;DAT;{number}") for w in "efgh" for end, number in (("om", "PL"), ("u", "SG"))]
    near += [("z", "zom", "ADJ;DAT;PL")]

    def written(rows: list[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
        return {(rows[number][0], features): form for number, form, features in recombine(rows, 100, 0)}

    assert written(far) == {(w, "ADJ;DAT;SG"): f"{w}e" for w in "wvt"}, "in the order that most rows have"
    both = written(far + near)
    assert both[("z", "ADJ;DAT;SG")] == "zu" and ("w", "ADJ;DAT;SG") not in both


def test_the_script_writes_new_combinations_after_the_table(tmp_path: Path) -> None:
    rows = ["id\tlemma\ttags\tform", *(f"7\t{word}\t{tags}\t{form}" for word, form, tags in TABLE)]
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = ("--source_column", "lemma", "--target_column", "form", "--feature_column", "tags")
    done = run("hallucinate.py", tmp_path / "a.tsv", *columns, "--output_file", tmp_path / "b.tsv")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "b.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[: len(rows)] == rows and "7\tbig\tADJ;NOM;SG\tbigo" in lines[len(rows) :]
    assert f"and {len(lines) - len(rows)} new ones".encode() in done.stdout
