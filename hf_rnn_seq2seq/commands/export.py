"""Export a trained model to ONNX, or for numpy alone: `hf-rnn export runs/demo --output_dir runs/demo-onnx`.

--format onnx (the default) writes encoder.onnx, decoder.onnx, decoding.json and the tokenizer.
`hf_rnn_seq2seq.export.onnx_runtime` translates with them, using onnxruntime and numpy, by greedy or beam search; the
results are those of `generate()`. --format onnx_greedy writes greedy.onnx, one graph from source ids to target ids, for
programs in other languages. --format numpy writes g2p.npz and g2p.py, which needs nothing but numpy, for small
models of characters or words, such as pronunciations. The files are compared with the model before they are kept.
--text translates a line with them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="directory that training wrote, or a repository of the Hub")
    parser.rename("--output", "--output_dir")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument(
        "--format",
        choices=("onnx", "onnx_greedy", "numpy"),
        default="onnx",
        help="onnx_greedy: one graph with the search inside; numpy: for a small model of characters or words",
    )
    parser.add_argument("--weights", choices=("int8", "float32"), help="of --format numpy (default: int8)")
    parser.add_argument("--text", help="a line to translate with the exported files")
    parser.add_argument("--num_beams", type=command_line.at_least(1), help="with --text (default: the checkpoint's)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.weights is not None and arguments.format != "numpy":
        raise ArgumentError(f"weights={arguments.weights!r}: only --format numpy has a choice of weights")
    command_line.load_libraries()
    from hf_rnn_seq2seq.files import check_new_folder
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    check_new_folder(arguments.output_dir, "output_dir")
    model, tokenizer = load_checkpoint(arguments.model, device="cpu", dtype="float32")
    (_numpy if arguments.format == "numpy" else _onnx)(arguments, model, tokenizer)
    return 0


def _onnx(arguments: argparse.Namespace, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    one_graph = arguments.format == "onnx_greedy"
    if one_graph and (arguments.num_beams or 1) > 1:
        raise ArgumentError(
            f"num_beams={arguments.num_beams}: the search of --format onnx_greedy is greedy; leave it out"
        )
    try:
        from hf_rnn_seq2seq.export.onnx import export_onnx
        from hf_rnn_seq2seq.export.onnx_greedy import GREEDY, export_onnx_greedy, search
        from hf_rnn_seq2seq.export.onnx_runtime import OnnxTranslator
        from hf_rnn_seq2seq.files import whole_folder

        with whole_folder(arguments.output_dir) as folder:
            difference = (export_onnx_greedy if one_graph else export_onnx)(model, folder)
            tokenizer.save_pretrained(folder)
    except ImportError as error:
        raise ValueError(f"{error}; the extra `onnx` installs it: pip install 'hf_rnn_seq2seq[onnx]'") from None
    _list_files(arguments.output_dir)
    print(f"largest difference of the logits from the model: {difference:.1e}")
    if arguments.text is not None:
        source = tokenizer(arguments.text, return_tensors="np")
        if one_graph:
            written = search(Path(arguments.output_dir) / GREEDY, source["input_ids"])
        else:
            written = OnnxTranslator(arguments.output_dir).generate(
                source["input_ids"], source["attention_mask"], num_beams=arguments.num_beams
            )
        print(tokenizer.batch_decode(written, skip_special_tokens=True)[0])


def _numpy(arguments: argparse.Namespace, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    from hf_rnn_seq2seq.export.numpy_pack import export_numpy
    from hf_rnn_seq2seq.export.numpy_runtime import G2p

    difference = export_numpy(model, tokenizer, arguments.output_dir, arguments.weights or "int8")
    _list_files(arguments.output_dir)
    print(f"largest difference of the log-probabilities from the model: {difference:.1e}")
    if arguments.text is not None:
        g2p = G2p(arguments.output_dir)
        beams = arguments.num_beams or g2p.settings["num_beams"]
        symbols = g2p(arguments.text) if beams == 1 else g2p.n_best(arguments.text, 1, beams)[0][0]
        print((" " if g2p.target["split"] == "between spaces" else "").join(symbols))


def _list_files(folder: str) -> None:
    for path in sorted(path for path in Path(folder).iterdir() if path.is_file()):
        print(f"{path.stat().st_size:>12,}  {path.name}")
