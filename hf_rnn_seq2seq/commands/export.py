"""Export a trained model to ONNX: `python scripts/export_onnx.py runs/demo --output_dir runs/demo-onnx`.

Writes encoder.onnx, decoder.onnx, decoding.json and the tokenizer. `hf_rnn_seq2seq.export.onnx_runtime` translates with
them, using onnxruntime and numpy, by greedy or beam search; the results are those of `generate()`. The files are
compared with the model before they are written. --text translates a line with them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="directory that training wrote, or a repository of the Hub")
    parser.rename("--output", "--output_dir")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument("--text", help="a line to translate with the exported files")
    parser.add_argument("--num_beams", type=command_line.at_least(1), help="with --text (default: the checkpoint's)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model, device="cpu", dtype="float32")
    try:
        from hf_rnn_seq2seq.export.onnx import export_onnx
        from hf_rnn_seq2seq.export.onnx_runtime import OnnxTranslator

        difference = export_onnx(model, arguments.output_dir)
    except ImportError as error:
        raise ValueError(f"{error}; the extra `onnx` installs it: pip install 'hf_rnn_seq2seq[onnx]'") from None
    tokenizer.save_pretrained(arguments.output_dir)
    for path in sorted(path for path in Path(arguments.output_dir).iterdir() if path.is_file()):
        print(f"{path.stat().st_size:>12,}  {path.name}")
    print(f"largest difference of the logits from the model: {difference:.1e}")
    if arguments.text is not None:
        source = tokenizer(arguments.text, return_tensors="np")
        written = OnnxTranslator(arguments.output_dir).generate(
            source["input_ids"], source["attention_mask"], num_beams=arguments.num_beams
        )
        print(tokenizer.batch_decode(written, skip_special_tokens=True)[0])
    return 0
