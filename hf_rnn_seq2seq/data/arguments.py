"""The options that choose a corpus and a tokenizer."""

from dataclasses import dataclass

from hf_rnn_seq2seq.data.lexicon import LEXICONS
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.options import OptionGroup, option

# Split -> the option that limits its rows.
ROW_LIMITS = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}
SPLITS = tuple(ROW_LIMITS)
ALGORITHMS = ("bpe", "unigram", "wordpiece", "word", "char", "letter")
SENTENCES = ("lines", "punctuation")
LABELED = "labeled"  # file_format of lines of a class, a space or tab, and a text
FORMS = ("nfc", "nfd", "nfkc", "nfkd")
TASKS = ("translation", "captioning", "classification", "handwriting", "text")
# Options that not every task reads, with the tasks that do.
OF_TASKS = {
    **dict.fromkeys(("captions_file", "image_folder", "image_size"), ("captioning",)),
    **dict.fromkeys(("validation_writers", "test_writers"), ("handwriting",)),
    **dict.fromkeys(
        ("source_column", "target_column", "header", "dataset_config_name", "preprocessing_num_workers", "encoder")
        + ("target_unicode_form", "gradient_checkpointing"),
        ("translation", "captioning", "classification"),
    ),
    **dict.fromkeys(
        ("tokenizer_name_or_path", "tokenizer_algorithm", "vocab_size", "min_frequency", "lowercase"),
        ("translation", "captioning", "classification", "text"),
    ),
    **dict.fromkeys(
        ("data_seed", "max_train_samples", "max_eval_samples", "max_predict_samples", "train_batch_tokens"),
        ("translation", "captioning", "classification", "handwriting"),
    ),
    **dict.fromkeys(
        ("source_lang", "feature_column", "sum_features", "several_references")
        + ("alignment_file", "alignment_column", "alignment_unit", "streaming", "streaming_buffer")
        + ("source_tokenizer_algorithm", "target_tokenizer_algorithm", "source_unicode_form", "source_vocab_size")
        + ("joint_vocabulary", "bpe_dropout", "extend_vocabulary", "source_vectors", "target_vectors")
        + ("objective", "guided_alignment_weight", "copy_mechanism"),
        ("translation",),
    ),
    **dict.fromkeys(("max_source_length", "file_format", "reverse_source"), ("translation", "classification")),
    "word_dropout": ("translation", "classification", "text"),
    **dict.fromkeys(
        ("target_lang", "num_beams", "length_penalty", "no_repeat_ngram_size")
        + ("predict_with_generate", "max_generate_samples", "freeze_vectors"),
        ("translation", "captioning"),
    ),
    "max_target_length": ("translation", "captioning", "handwriting", "text"),
    "max_new_tokens": ("translation", "captioning", "text"),
    **dict.fromkeys(("validation_fraction", "test_fraction"), ("text",)),
    "split_sentences": ("classification",),
}
# Options that name files or folders.
PATH_OPTIONS = ("imports", "train_file", "validation_file", "test_file", "alignment_file", "image_folder")
PATH_OPTIONS += ("captions_file", "dataset_name", "tokenizer_name_or_path", "model_name_or_path", "encoder")
PATH_OPTIONS += ("extend_vocabulary", "source_vectors", "target_vectors")


@dataclass
class DataArguments(OptionGroup):
    """The corpus."""

    task: str = option("translation", "what is read and what is written", choices=TASKS)
    dataset_name: str | None = option(
        None,
        "`cldr`, `shapes`, `documents`, `hershey` or `pydoc`, a saved `datasets` folder, or a data set of the Hub",
        path=True,
    )
    dataset_config_name: str | None = option(None, "its configuration; for cldr a pair of locales such as en-fr")
    train_file: str | None = option(
        None, "TSV, CSV, JSONL or Parquet file, or two text files `a,b`; may be .gz", path=True
    )
    validation_file: str | None = option(None, "like train_file", path=True)
    test_file: str | None = option(None, "like train_file", path=True)
    source_lang: str | None = option(None, "language of the source sentences")
    target_lang: str | None = option(None, "language of the target sentences")
    source_column: str | None = option(
        None, "column of a table that holds the source (default: source_lang; of pictures: image; of classes: text)"
    )
    target_column: str | None = option(
        None, "column of a table that holds the target (default: target_lang; of pictures: caption; of classes: label)"
    )
    header: bool = option(True, "the first row of a table names its columns; false: columns are numbers from 0")
    feature_column: str | None = option(
        None,
        "column of features (`V;PST`, a language), read before the source, one token each (tokenizer: letter)",
    )
    sum_features: bool = option(
        False, "the encoder reads the sum of the features beside each letter, not the features before the letters"
    )
    file_format: str | None = option(
        None,
        f"format of the files if they are lexicons: {', '.join(LEXICONS)}; {LABELED}: lines of a class and a text",
        choices=(*LEXICONS, LABELED),
    )
    several_references: bool = option(
        False, "rows with the same source are several references of one source when outputs are scored"
    )
    alignment_file: str | None = option(
        None,
        "word alignments of the training rows (a line `0-0 1-2` each), for guided_alignment_weight; default: computed",
        path=True,
    )
    alignment_column: str | None = option(
        None, "column of train_file or of the data set with the alignments; cldr has `alignment`"
    )
    alignment_unit: str = option("word", "alignments count words between spaces, or tokens", choices=("word", "token"))
    validation_writers: list[str] = option(
        [], "handwriting: rows of train_file by these writers or contributors are the validation split"
    )
    test_writers: list[str] = option([], "handwriting: the same for the test split; they are never trained on")
    image_folder: str | None = option(
        None, "captioning: the folder or .zip of the pictures that the rows name (a data set may hold them)", path=True
    )
    captions_file: str | None = option(
        None,
        "captioning: lines `picture#number<TAB>caption` (Flickr8k); the files of the splits then list pictures",
        path=True,
    )
    image_size: int | None = option(
        None,
        "captioning: pictures are scaled to squares of so many pixels (default: as the encoder was trained)",
        at_least=1,
    )
    max_train_samples: int | None = option(None, "use only this number of training rows, the first", at_least=1)
    max_eval_samples: int | None = option(None, "use only this number of validation rows, the first", at_least=1)
    max_predict_samples: int | None = option(None, "use only this number of test rows, the first", at_least=1)
    max_source_length: int = option(
        128, "longest source in tokens, with the end token; classification cuts longer ones", at_least=1
    )
    max_target_length: int = option(
        128,
        "longest target in tokens (of handwriting: points); text: tokens through which gradients go back",
        at_least=1,
    )
    validation_fraction: float = option(
        0.1,
        "text: without validation_file, the last share of train_file that is held out",
        at_least=0,
        below=1,
    )
    test_fraction: float = option(0.0, "text: the same for the test, behind the validation text", at_least=0, below=1)
    data_seed: int = option(0, "seed of the training rows that cldr, shapes, documents and hershey draw", at_least=0)
    preprocessing_num_workers: int | None = option(None, "processes that tokenize (default: one)", at_least=1)
    streaming: bool = option(False, "read the training split while training instead of writing it to the cache first")
    streaming_buffer: int = option(
        10_000, "streaming: rows that are shuffled and put into batches together", at_least=1
    )

    @property
    def files(self) -> dict[str, str | None]:
        """The file of each split, where it has one."""
        return {split: getattr(self, f"{split}_file") for split in SPLITS}

    @property
    def row_limits(self) -> dict[str, int | None]:
        """How many rows of each split are used; None for all."""
        return {split: getattr(self, name) for split, name in ROW_LIMITS.items()}

    def validate(self) -> None:
        if self.task == "captioning":
            self._validate_pictures()
        self._validate_classes()
        for name, content, task in (("hershey", "strokes of a pen", "handwriting"), ("pydoc", "running text", "text")):
            if self.dataset_name == name and self.task != task:
                raise ArgumentError(f"dataset_name={name!r}: has {content}; it is for task={task!r}")
        for split, value in self.files.items():
            if self.dataset_name and value:
                raise ArgumentError(
                    f"{split}_file={value!r}: either dataset_name ({self.dataset_name!r}) or files, not both"
                )
        if self.feature_column is not None:
            for name in ("alignment_file", "alignment_column"):
                if (value := getattr(self, name)) is not None:
                    raise ArgumentError(
                        f"{name}={value!r}: counts the words of a source without features; leave out feature_column "
                        f"({self.feature_column!r}), or align by guided_alignment_weight alone"
                    )
        for name in ("source_column", "target_column", "feature_column"):
            value = getattr(self, name)
            if not self.header and value is not None and not value.isdecimal():
                raise ArgumentError(f"{name}={value!r}: a table without header has numbered columns; the first is 0")

    def _validate_classes(self) -> None:
        """The corpora and formats of classes are for classification, those of other tasks are not."""
        if self.task == "classification" and self.dataset_name in ("cldr", "shapes"):
            raise ArgumentError(
                f"dataset_name={self.dataset_name!r}: has no classes; task='classification' has `documents`"
            )
        if self.task == "classification" and self.file_format in LEXICONS:
            raise ArgumentError(
                f"file_format={self.file_format!r}: has no classes; task='classification' has {LABELED!r}"
            )
        for name, value in (("dataset_name", "documents"), ("file_format", LABELED)):
            if self.task != "classification" and getattr(self, name) == value:
                raise ArgumentError(f"{name}={value!r}: has classes; it is for task='classification'")

    def _validate_pictures(self) -> None:
        if self.dataset_name == "cldr":
            raise ArgumentError("dataset_name='cldr': has no pictures; task='captioning' has `shapes`")
        if self.dataset_name == "shapes" and self.image_folder:
            raise ArgumentError(f"image_folder={self.image_folder!r}: dataset_name='shapes' draws its pictures")
        if any(self.files.values()) and not self.dataset_name and not self.image_folder:
            raise ArgumentError("image_folder=None: task='captioning' needs the folder or .zip of the pictures")
        if self.captions_file and self.dataset_name:
            raise ArgumentError(f"captions_file={self.captions_file!r}: goes with train_file, not with dataset_name")


@dataclass
class TokenizerArguments(OptionGroup):
    """The vocabulary, trained on the training split unless one is named."""

    tokenizer_name_or_path: str | None = option(None, "a saved tokenizer to use instead of training one", path=True)
    tokenizer_algorithm: str = option("bpe", "how words are split", choices=ALGORITHMS)
    source_tokenizer_algorithm: str | None = option(None, "of the source, where it differs", choices=ALGORITHMS)
    target_tokenizer_algorithm: str | None = option(None, "of the target, where it differs", choices=ALGORITHMS)
    source_unicode_form: str | None = option(None, "Unicode form that the model reads", choices=FORMS)
    target_unicode_form: str | None = option(
        None, "Unicode form that the model writes; composed again in outputs where that is lossless", choices=FORMS
    )
    vocab_size: int = option(8000, "largest vocabulary (of the target, where there are two)", at_least=5)
    source_vocab_size: int | None = option(None, "largest source vocabulary, with joint_vocabulary off", at_least=5)
    joint_vocabulary: bool = option(True, "one vocabulary for both sides")
    min_frequency: int = option(2, "rarer tokens get no entry", at_least=1)
    split_sentences: str | None = option(
        None,
        "classification: texts are sentences (preset yang2016), which end at `lines` breaks, or also at `punctuation`",
        choices=SENTENCES,
    )
    lowercase: bool = option(False, "change text to lower case: the model neither reads nor writes capitals")
    bpe_dropout: float = option(
        0.0,
        "bpe: probability that a merge is left out of a training sentence, drawn in each epoch. The draws cannot be "
        "seeded: a resumed run has the same rows but draws other pieces. train_batch_tokens counts the usual pieces",
        at_least=0,
        at_most=1,
    )
