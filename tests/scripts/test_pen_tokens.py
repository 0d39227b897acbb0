"""Points of a pen as tokens that a translator reads."""

from pen_tokens import line


def test_a_token_is_a_direction_a_distance_and_whether_the_pen_was_lifted() -> None:
    """Directions are sixteenths of a turn, from the right on against the clock; `-` follows the end of a stroke."""
    points = [(0.1, 0.0, 0), (0.0, 0.2, 1), (-0.4, 0.01, 0), (0.0, -2.0, 0), (0.0, 0.0, 1)]
    assert line(points, "né") == "a2 e4 i5- m6 a0\tn é\n"
