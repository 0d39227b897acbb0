"""Decoding beside CTranslate2 4.8, which computes a Transformer in 8 bits: what one would deploy instead.

    python scripts/benchmarks/peers/ctranslate2_transformer.py runs/recurrent --transformer runs/marian

`runs/recurrent` is any run of this package; `runs/marian` one that trained a model of transformer.py with the same
tokenizer. Look at the BLEU of both. The first call installs CTranslate2 from the package index into an environment that
lies over this one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(place) for place in (SCRIPTS.parent, SCRIPTS) if str(place) not in sys.path]

from benchmarks.toolkits import LONGEST, Peer, add_options, measure, serve  # noqa: E402  the checkout's

from hf_rnn_seq2seq import command_line  # noqa: E402  the checkout's

PEER = Peer("CTranslate2, int8", __file__, ("ctranslate2==4.8.5",), trains=False, weights=False)


class Converted:
    """The Transformer of a run, converted to the weights of CTranslate2."""

    def __init__(self, folder: str, threads: int, transformer: str, **_: Any) -> None:
        import ctranslate2

        self.folder = Path(folder)
        self._convert(transformer)
        place = {"model_path": str(self.folder / "converted"), "device": "cpu", "compute_type": "int8"}
        # As many batches at a time as threads; one sentence is computed by all of them.
        self.of_batches = ctranslate2.Translator(**place, inter_threads=threads, intra_threads=1)
        self.of_one = ctranslate2.Translator(**place, inter_threads=1, intra_threads=threads)

    def _convert(self, transformer: str) -> None:
        from ctranslate2.converters.transformers import BartLoader

        from hf_rnn_seq2seq.run_directory import load_checkpoint

        model, tokenizer = load_checkpoint(transformer)
        # What Marian's model has and BART's configuration says otherwise. The loader for Marian would start the decoder
        # from a zero vector, as models of that toolkit do.
        model.config.normalize_before = model.config.normalize_embedding = False
        loader = BartLoader()
        spec = loader.get_model_spec(model)
        loader.set_vocabulary(spec, tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
        loader.set_config(spec.config, model, tokenizer)
        spec.validate()
        spec.optimize(quantization="int8")
        (self.folder / "converted").mkdir()
        spec.save(str(self.folder / "converted"))

    def decode(self, batch: int, beams: int, sentences: int) -> list[str]:
        """The best output of the first sentences of the test set, as tokens between spaces."""
        lines = (self.folder / "test.src").read_text(encoding="utf-8").splitlines()[:sentences]
        sources = [line.split(" ") for line in lines]
        options = {"beam_size": beams, "max_decoding_length": LONGEST, "max_batch_size": batch}
        if batch == 1:
            found = [self.of_one.translate_batch([source], **options)[0] for source in sources]
        else:
            found = self.of_batches.translate_batch(sources, **options)
        return [" ".join(one.hypotheses[0]) for one in found]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add_options(parser)
    parser.add_argument("--transformer", required=True, metavar="DIR", help="the run of a Transformer")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    return measure(arguments, [PEER], transformer=str(Path(arguments.transformer).resolve()))


if __name__ == "__main__":
    serve(Converted) if sys.argv[1:] == ["serve"] else command_line.run(main)
