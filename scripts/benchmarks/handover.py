"""What a run of this package gives to OpenNMT-py and its successor: its tokens, its vocabulary and its weights."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SPECIAL = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
# The fields of the run that the peers can compute: Luong 2015 with input feeding, one layer a side.
LUONG = {"cell_type": "lstm", "attention_type": "general", "attention_order": "after_cell", "input_feeding": True}
LUONG |= {"bridge": "copy", "readout": "tanh", "readout_embedding": False, "encoder_layers": 1, "decoder_layers": 1}
LUONG |= {"context": "attention", "tie_word_embeddings": False, "share_encoder_decoder_embeddings": False}


def prepare(run: str, folder: Path, weights: bool) -> list[str]:
    """Writes the tokens of a run's corpus and its vocabulary; returns the references of its test set.

    `train.src`, `train.tgt` and `test.src` have a sentence a line, tokens between spaces, the end token of the source
    among them. `tokens.json` are the entries in the order of their ids, `vocabulary.txt` those that are not special.
    With `weights`, those of a run of the form `LUONG` too; any other is refused.
    """
    from safetensors.torch import save_file

    from hf_rnn_seq2seq.data.corpus import load_corpus
    from hf_rnn_seq2seq.run_directory import load_checkpoint
    from hf_rnn_seq2seq.training.arguments import RunOptions

    model, tokenizer = load_checkpoint(run)
    wrong = {name: value for name, value in LUONG.items() if getattr(model.config, name, None) != value}
    if wrong and weights:
        raise ValueError(f"{run}: its model must have {wrong}, which the peers compute; train one as the README has it")
    options = RunOptions.parse([f"{run}/recipe.yaml"])
    corpus = load_corpus(options.data, splits=("train", "test"))
    longest = options.data.max_source_length, options.data.max_target_length
    rows = corpus.splits["train"]
    pairs = [tokenizer(list(rows[side]))["input_ids"] for side in ("source", "target")]
    kept = [row for row in zip(*pairs, strict=True) if len(row[0]) <= longest[0] and len(row[1]) <= longest[1]]
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))

    def write(name: str, found: Sequence[Sequence[int]]) -> None:
        text = "".join(" ".join(names[token] for token in row) + "\n" for row in found)
        (folder / name).write_text(text, encoding="utf-8")

    write("train.src", [source for source, _ in kept])
    write("train.tgt", [target[:-1] for _, target in kept])
    write("test.src", tokenizer(list(corpus.splits["test"]["source"]))["input_ids"])
    (folder / "tokens.json").write_text(json.dumps(names), encoding="utf-8")
    plain = [name for name in names if name not in SPECIAL.values()]
    (folder / "vocabulary.txt").write_text("".join(f"{name}\n" for name in plain), encoding="utf-8")
    if weights:
        save_file(luong_weights(model), folder / "weights.safetensors")
    return list(corpus.splits["test"]["target"])


def luong_weights(model: Any) -> dict[str, Any]:
    """The weights of a model of the form `LUONG`, by the names of OpenNMT-py's modules."""
    import torch

    state = model.state_dict()
    found = {name: state.pop(f"model.{side}.embed_tokens.weight") for name, side in
             (("source_table", "encoder"), ("target_table", "decoder"))}  # fmt: skip
    for name in list(state):
        if name.startswith("model.encoder.layers.0."):
            way = "_reverse" if ".backward" in name else ""
            found[f"encoder.rnn.{name.rpartition('.')[2]}{way}"] = state.pop(name)
        elif name.startswith("model.decoder.layers.0."):
            found[f"decoder.rnn.layers.0.{name.rpartition('.')[2].removesuffix('_l0')}"] = state.pop(name)
    found["decoder.attn.linear_in.weight"] = state.pop("model.decoder.attention.key.weight").t()
    width = model.config.hidden_size
    hidden, context = state.pop("model.decoder.readout.project.weight").split([width, width], 1)
    found["decoder.attn.linear_out.weight"] = torch.cat([context, hidden], 1)
    for name in ("weight", "bias"):
        found[f"generator.{name}"] = state.pop(f"lm_head.{name}")
    assert not state, sorted(state)
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in found.items()}


def weights_for(folder: Path, tokens: Sequence[str], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The weights for a toolkit whose vocabulary is `tokens`; `renamed` are its names for the special ones."""
    import torch
    from safetensors.torch import load_file

    place = {name: number for number, name in enumerate(json.loads((folder / "tokens.json").read_text()))}
    rows = torch.tensor([place[renamed.get(token, token)] for token in tokens])
    tables = ("source_table", "target_table", "generator.weight", "generator.bias")
    found = load_file(folder / "weights.safetensors")
    return {name: tensor[rows] if name in tables else tensor for name, tensor in found.items()}


class OpenNmtFamily(ABC):
    """What OpenNMT-py and its successor have in common: `trainer`, `optimizer` and `batches`, and engines that decode.

    A subclass names the tables of its word vectors, the count of target tokens in its statistics, and makes an engine.
    """

    tables: Mapping[str, str]  # of this module's weights, by the names of the toolkit
    target_tokens: str
    folder: Path

    def __init__(self) -> None:
        self.engines: dict[tuple[int, int], Any] = {}

    def save(self, model: Any, vocabs: Mapping[str, Any], saver: Any) -> None:
        """Writes a checkpoint with the weights of the run; the model keeps its random ones."""
        from torch import nn

        load = partial(nn.Module.load_state_dict, model)  # its own takes a checkpoint
        random = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = weights_for(self.folder, vocabs["src"].ids_to_tokens, {"<blank>": "<pad>"})
        load({self.tables.get(name, name): tensor for name, tensor in found.items()})
        saver.save(1)
        load(random)

    def train(self, updates: int) -> int:
        """Trains, and returns the number of target tokens."""
        last = self.optimizer.training_step + updates - 1
        found = self.trainer.train(self.batches, last, save_checkpoint_steps=0)
        return int(getattr(found, self.target_tokens))

    def decode(self, batch: int, beams: int, sentences: int) -> list[str]:
        """The best output of the first sentences of the test set, as tokens between spaces."""
        if (batch, beams) not in self.engines:
            self.engines[batch, beams] = self.engine(batch, beams)
        lines = (self.folder / "test.src").read_text(encoding="utf-8").splitlines()[:sentences]
        found = self.engines[batch, beams].infer_list(lines)[-1]
        return [best for best, *_ in found]

    @abstractmethod
    def engine(self, batch: int, beams: int) -> Any:
        """The toolkit's own decoder."""
