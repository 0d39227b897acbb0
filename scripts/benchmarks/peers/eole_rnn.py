"""Speed beside Eole 0.6.4, the successor of OpenNMT-py: training, and decoding with the same weights, in turns.

    python scripts/benchmarks/peers/eole_rnn.py runs/luong

As opennmt_rnn.py. Eole's recurrent encoder reads the padding of shorter sentences too, so its outputs differ in some of
them when a batch has several.
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
    "Eole",
    __file__,
    ("eole==0.6.4",),
    (
        "configargparse",
        "ctranslate2>=4,<5",
        "pyonmttok>=1.38.1,<2",
        "pyahocorasick",
        "rapidfuzz",
        "sentencepiece<=0.2.2",
    )
    + ("protobuf", "pydantic", "sacrebleu", "six", "subword-nmt", "tensorboard", "torch-optimi"),
)


class Eole(OpenNmtFamily):
    """The toolkit's own trainer and predictor."""

    tables = {"source_table": "src_emb.embeddings.weight", "target_table": "tgt_emb.embeddings.weight"}
    target_tokens = "n_tokens"

    def __init__(self, folder: str, threads: int, **_: Any) -> None:
        from eole import train_single
        from eole.config.run import TrainConfig
        from eole.constants import CorpusTask
        from eole.inputters.dynamic_iterator import build_dynamic_dataset_iter
        from eole.models.model import get_model_class
        from eole.models.model_saver import build_model_saver
        from eole.trainer import build_trainer
        from eole.utils.optimizers import Optimizer

        super().__init__()
        self.folder = Path(folder)
        config = TrainConfig(**self._settings())
        train_single.configure_process(config, -1)
        context = train_single.TrainingInitializer(config).initialize()
        config, vocabs = context.config, context.vocabs
        model = get_model_class(config.model).for_training(config.model, vocabs, config.training, device_id=-1)
        self.optimizer = Optimizer.from_config(model, config)
        saver = build_model_saver(config, model, vocabs, self.optimizer, -1, context.transforms)
        self.save(model, vocabs, saver)
        self.trainer = build_trainer(config, -1, model, vocabs, self.optimizer)
        data = {"task": CorpusTask.TRAIN, "stride": 1, "offset": 0, "device_id": -1}
        self.batches = iter(build_dynamic_dataset_iter(config, context.transforms, vocabs, **data))

    def _settings(self) -> dict[str, Any]:
        side = {"layers": 1, "hidden_size": 512, "rnn_type": "LSTM"}
        # Without that type, a recurrent model reads positions too.
        embeddings = {"word_vec_size": 256, "position_encoding_type": None}
        model = {"architecture": "custom", "embeddings": embeddings, "hidden_size": 512, "input_feed": 1}
        model |= {"encoder": side | {"encoder_type": "brnn"}}
        model |= {"decoder": side | {"decoder_type": "rnn", "global_attention": "general"}}
        training = {"model_path": str(self.folder / "eole"), "dropout": [0.2], "optim": "adam", "learning_rate": 1e-3}
        training |= {"max_grad_norm": 1.0, "batch_type": "sents", "batch_size": BATCH, "normalization": "sents"}
        training |= {"bucket_size": 29000, "num_workers": 0, "compute_dtype": "fp32", "valid_steps": 1_000_000}
        corpus = {"path_src": str(self.folder / "train.src"), "path_tgt": str(self.folder / "train.tgt")}
        vocabulary = {"src_vocab": str(self.folder / "vocabulary.txt"), "share_vocab": True, "vocab_size_multiple": 1}
        rest = {"seed": 1, "report_every": 100_000, "data": {"train": corpus}}
        return {"model": model, "training": training, **vocabulary, **rest}

    def engine(self, batch: int, beams: int) -> Any:
        from eole.config.run import PredictConfig
        from eole.inference_engine import InferenceEnginePY

        given = {"model_path": [str(self.folder / "eole")], "src": "test.src", "output": "output.txt"}
        given |= {"beam_size": beams, "batch_size": batch, "batch_type": "sents", "max_length": LONGEST}
        return InferenceEnginePY(PredictConfig(**given, compute_dtype="fp32"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return measure(parse(argv), [PEER])


if __name__ == "__main__":
    serve(Eole) if sys.argv[1:] == ["serve"] else command_line.run(main)
