"""Speed beside OpenNMT-py 3.5.1: training, and decoding with the same weights, in turns.

    python scripts/benchmarks/peers/opennmt_rnn.py runs/luong

`runs/luong` is a run of this package whose model OpenNMT-py can compute (benchmarks/README.md has the command that
trains it). The first call installs OpenNMT-py from the package index into an environment that lies over this one, so
both use the same torch. Each round trains every system for some updates of 64 sentences, from random weights, then
decodes the test set with the weights of the run; figures are medians over the rounds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(place) for place in (SCRIPTS.parent, SCRIPTS) if str(place) not in sys.path]

from benchmarks.handover import OpenNmtFamily  # noqa: E402  the checkout's
from benchmarks.toolkits import BATCH, LONGEST, Peer, add_options, measure, serve  # noqa: E402  the checkout's

from hf_rnn_seq2seq import command_line  # noqa: E402  the checkout's

PEER = Peer(
    "OpenNMT-py",
    __file__,
    # It asks for torch < 2.3 and runs with newer ones.
    ("OpenNMT-py==3.5.1",),
    (
        "configargparse",
        "ctranslate2>=4,<5",
        "pyonmttok>=1.37,<2",
        "pyahocorasick",
        "fasttext-wheel",
        "spacy",
        "rapidfuzz",
    )
    + ("sacrebleu", "six", "tensorboard"),
)
OPTIONS = f"""
save_model: model
save_format: pytorch
src_vocab: vocabulary.txt
share_vocab: true
word_vec_size: 256
encoder_type: brnn
decoder_type: rnn
rnn_type: LSTM
enc_layers: 1
dec_layers: 1
enc_hid_size: 512
dec_hid_size: 512
global_attention: general
input_feed: 1
dropout: [0.2]
optim: adam
learning_rate: 0.001
max_grad_norm: 1
batch_type: sents
batch_size: {BATCH}
normalization: sents
bucket_size: 29000
num_workers: 0
world_size: 1
gpu_ranks: []
report_every: 100000
valid_steps: 1000000
seed: 1
data:
  train: {{path_src: train.src, path_tgt: train.tgt}}
"""


class OpenNmt(OpenNmtFamily):
    """The toolkit's own trainer and translator."""

    tables = {
        f"{table}_table": f"{side}.embeddings.make_embedding.emb_luts.0.weight"
        for table, side in (("source", "encoder"), ("target", "decoder"))
    }
    target_tokens = "n_words"

    def __init__(self, folder: str, threads: int, **_: Any) -> None:
        from onmt import train_single
        from onmt.constants import CorpusTask
        from onmt.inputters.dynamic_iterator import build_dynamic_dataset_iter
        from onmt.model_builder import build_model
        from onmt.models import build_model_saver
        from onmt.opts import train_opts
        from onmt.trainer import build_trainer
        from onmt.utils.optimizers import Optimizer
        from onmt.utils.parse import ArgumentParser

        super().__init__()
        self.folder = Path(folder)
        settings = self.folder / "opennmt.yaml"
        settings.write_text(OPTIONS, encoding="utf-8")
        parser = ArgumentParser()
        train_opts(parser)
        options, _ = parser.parse_known_args(["-config", str(settings)])
        for check in ("validate_train_opts", "update_model_opts", "validate_model_opts"):
            getattr(ArgumentParser, check)(options)
        train_single.configure_process(options, -1)
        _, vocabs, transforms = train_single._init_train(options)
        model = build_model(options, options, vocabs, None, -1)
        self.optimizer = Optimizer.from_opt(model, options)
        self.save(model, vocabs, build_model_saver(options, options, model, vocabs, self.optimizer, -1))
        (self.checkpoint,) = self.folder.glob("model_step_1*")
        self.trainer = build_trainer(options, -1, model, vocabs, self.optimizer)
        data = {"task": CorpusTask.TRAIN, "copy": False, "stride": 1, "offset": 0, "device_id": -1}
        self.batches = iter(build_dynamic_dataset_iter(options, transforms, vocabs, **data))

    def engine(self, batch: int, beams: int) -> Any:
        import torch
        from onmt.inference_engine import InferenceEnginePY
        from onmt.opts import translate_opts
        from onmt.utils.parse import ArgumentParser

        parser = ArgumentParser()
        translate_opts(parser)
        given = {"model": self.checkpoint, "src": "test.src", "output": "output.txt", "beam_size": beams}
        given |= {"batch_size": batch, "batch_type": "sents", "gpu": -1, "max_length": LONGEST}
        torch.serialization.add_safe_globals([argparse.Namespace])  # its checkpoints hold one
        options = parser.parse_args([word for name, value in given.items() for word in (f"-{name}", str(value))])
        ArgumentParser.validate_translate_opts(options)
        ArgumentParser._get_all_transform_translate(options)
        ArgumentParser._validate_transforms_opts(options)
        ArgumentParser.validate_translate_opts_dynamic(options)
        return InferenceEnginePY(options)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return measure(parse(argv), [PEER])


if __name__ == "__main__":
    serve(OpenNmt) if sys.argv[1:] == ["serve"] else command_line.run(main)
