"""Whether the words of a caption look at what they name, where the place of everything in a picture is known."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data import shapes
from hf_rnn_seq2seq.data.pieces import target_pieces
from hf_rnn_seq2seq.generation.attention import merge_words, region_grid
from hf_rnn_seq2seq.generation.translate import Hypothesis


@dataclass(frozen=True)
class Pointing:
    """Words that name the size, color or kind of an object, and how many of them look at it.

    A word looks at the region with the largest weight, and at an object if the middle of that region is inside its box.
    `by_chance` is the number of words that would, if each looked at a region at random.
    """

    inside: int
    words: int
    by_chance: float

    @property
    def share(self) -> float:
        """In percent."""
        return 100 * self.inside / max(self.words, 1)

    @property
    def share_by_chance(self) -> float:
        """In percent."""
        return 100 * self.by_chance / max(self.words, 1)


def pointing(names: Sequence[str], captions: Sequence[Hypothesis], tokenizer: PreTrainedTokenizerBase) -> Pointing:
    """Counts the words of captions of drawn pictures (`data/shapes.py`) that look at their object.

    The first object of a caption is compared with the first one of the picture, the second with the second; a word that
    names a further object looks at none.

    Args:
        names: of the pictures.
        captions: with attention (heads, target, regions), of which the mean over the heads counts.

    Raises:
        AttentionError: the regions are no square.
    """
    inside, words, by_chance = 0, 0, 0.0
    for name, caption in zip(names, captions, strict=True):
        if caption.attention is None or not caption.token_ids:
            continue
        pieces = target_pieces(tokenizer, caption.token_ids)
        columns = [[region] for region in range(caption.attention.shape[-1])]
        regions, special = [""] * len(columns), {*tokenizer.all_special_tokens}
        weights, _, texts = merge_words(caption.attention.mean(0), regions, pieces, special, columns)
        maps = region_grid(weights)
        side = maps.shape[-1]
        boxes = [shape.box for shape in shapes.scene(name)]
        middles = [((number % side + 0.5) / side, (number // side + 0.5) / side) for number in range(side * side)]
        for number, row in zip(shapes.named_objects([text.strip() for text in texts]), maps, strict=True):
            if number is None:
                continue
            words += 1
            if number < len(boxes):
                held = [_inside(middle, boxes[number]) for middle in middles]
                inside += held[int(row.argmax())]
                by_chance += sum(held) / len(held)
    return Pointing(inside, words, by_chance)


def _inside(middle: tuple[float, float], box: shapes.Box) -> bool:
    """Whether a point, in shares of the picture, is inside a box in pixels."""
    x, y = middle[0] * shapes.SIDE, middle[1] * shapes.SIDE
    return box[0] <= x < box[2] and box[1] <= y < box[3]
