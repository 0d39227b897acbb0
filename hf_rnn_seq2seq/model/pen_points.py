"""From the strokes of a pen to the points that a network reads, and back.

A stroke is a list of places (x, y), x to the right and y up, in any unit: the pen is on the paper from the first to the
last. A point is what Graves 2013, section 4, calls x_t: the offset from the place before, and 1 where a stroke ends.

Places that say nothing are left out: those closer than a tolerance to the line between their neighbors that stay (Ramer
1972; Douglas and Peucker 1973). A tablet records a hundred places a second, and this leaves about ten a letter.
"""

from collections.abc import Iterable, Sequence

Place = tuple[float, float]
Stroke = Sequence[Sequence[float]]
Point = tuple[float, float, float]

START: Point = (0.0, 0.0, 0.0)
"""What a network reads first: the pen is where the writing begins."""


def height(strokes: Iterable[Stroke]) -> float:
    """From the lowest place to the highest; of a level line its width, and 1 of a dot."""
    places = [place for stroke in strokes for place in stroke]
    for axis in (1, 0):
        numbers = [place[axis] for place in places]
        if (extent := max(numbers) - min(numbers)) > 0:
            return float(extent)
    return 1.0


def to_points(strokes: Iterable[Stroke], unit: float, tolerance: float) -> list[Point]:
    """The points of some strokes, the first of which is `START`.

    Args:
        strokes: of one writing, none empty.
        unit: offsets are divided by it; the height of a word of this writer, so that writers are alike.
        tolerance: in units; 0 keeps every place.
    """
    points, before = [], None
    for stroke in strokes:
        places = simplify([(place[0] / unit, place[1] / unit) for place in stroke], tolerance)
        if before is None and len(places) == 1:  # a dot: the pen starts and stays
            places *= 2
        for number, place in enumerate(places):
            x, y = before or place
            points.append((place[0] - x, place[1] - y, float(number == len(places) - 1)))
            before = place
    return points


def to_strokes(points: Iterable[Sequence[float]], unit: float, start: Place = (0.0, 0.0)) -> list[list[Place]]:
    """The strokes of some points, the first of which is at `start`; the inverse of `to_points`, but for what it left out."""
    strokes, (x, y), fresh = [], start, True
    for across, up, end in points:
        x, y = x + across * unit, y + up * unit
        if fresh:
            strokes.append([])
        strokes[-1].append((x, y))
        fresh = end > 0.5
    return strokes


def simplify(places: Sequence[Place], tolerance: float) -> list[Place]:
    """The places that a line with corners needs to stay within `tolerance` of all of them."""
    if tolerance <= 0 or len(places) < 3:
        return list(places)
    kept, waiting = {0, len(places) - 1}, [(0, len(places) - 1)]
    while waiting:
        first, last = waiting.pop()
        farthest, number = tolerance**2, 0
        (left, bottom), (right, top) = places[first], places[last]
        along, up = right - left, top - bottom
        length = along * along + up * up or 1.0  # there and back: the distance from the place itself
        # One loop without calls, since a corpus has millions of places.
        for between in range(first + 1, last):
            x, y = places[between]
            x, y = x - left, y - bottom
            share = (x * along + y * up) / length
            share = 0.0 if share < 0.0 else 1.0 if share > 1.0 else share
            x, y = x - share * along, y - share * up
            distance = x * x + y * y
            if distance > farthest:
                farthest, number = distance, between
        if number:
            kept.add(number)
            waiting += [(first, number), (number, last)]
    return [places[number] for number in sorted(kept)]
