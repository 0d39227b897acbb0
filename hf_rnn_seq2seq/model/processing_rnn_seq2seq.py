"""What a captioning model reads: pictures as pixels, and the beginning of the caption."""

from collections.abc import Sequence

import torch

from .config_checks import LOWEST_TRANSFORMERS  # noqa: F401 - checks the library before its newer names are imported
from .tokenization_rnn_seq2seq import start_token_id, target_ids

from transformers import (
    AutoConfig,
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)


class RnnSeq2SeqProcessor(ProcessorMixin):
    """An image processor and the tokenizer of the captions, saved together.

    `pipeline("image-text-to-text")` and `model.generate(**processor(images=picture))` use it.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: object, **kwargs: object) -> object:
        """As in transformers. Of a model that reads texts its tokenizer, which is all that it needs: `AutoProcessor` knows
        only the kind of model, and gives for other kinds the tokenizer too."""
        of_hub = ("trust_remote_code", "revision", "token", "cache_dir", "local_files_only", "force_download")
        try:
            config = AutoConfig.from_pretrained(
                pretrained_model_name_or_path, **{name: kwargs[name] for name in of_hub if name in kwargs}
            )
        except (OSError, ValueError):  # a processor that was saved alone
            config = None
        if not getattr(config, "reads_images", True):
            return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def __call__(
        self, images: object = None, text: str | Sequence[str] | None = None, **kwargs: object
    ) -> BatchFeature:
        """Pictures and the beginnings of their captions as tensors.

        Args:
            images: what the image processor takes: a picture, or a list of them.
            text: for each picture the words that its caption begins with; None or "" for none.
            kwargs: settings of the image processor; those of texts, such as `padding`, have no effect.

        Returns:
            `pixel_values` (batch, channels, height, width) if there are pictures; `decoder_input_ids` (batch, prompt), the
            start token and the tokens of `text`; and, if their numbers differ, `decoder_attention_mask`, 0 at the padding
            on the left.

        Raises:
            ValueError: the number of texts is not that of the pictures.
        """
        inputs: dict[str, torch.Tensor] = {}
        settings = {
            name: value for name, value in kwargs.items() if name in self.image_processor.valid_kwargs.__annotations__
        }
        if images is not None:
            settings["return_tensors"] = "pt"
            inputs["pixel_values"] = self.image_processor(images, **settings)["pixel_values"]
        count = len(inputs["pixel_values"]) if images is not None else None
        texts = [text or ""] * (count or 1) if text is None or isinstance(text, str) else list(text)
        if count is not None and len(texts) != count:
            raise ValueError(f"text: {len(texts)} texts for {count} pictures; give one for each, or none")
        return BatchFeature({**inputs, **self._prompts(texts)})

    def _prompts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        tokenizer = self.tokenizer
        rows = [[start_token_id(tokenizer)] for _ in texts]
        for row, text in zip(rows, texts, strict=True):
            if text.strip():
                ids = target_ids(tokenizer(text_target=text))
                row.extend(ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids)
        width = max(map(len, rows))
        padded = [[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]
        prompts = {"decoder_input_ids": torch.tensor(padded)}
        if any(len(row) < width for row in rows):
            prompts["decoder_attention_mask"] = torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            )
        return prompts

    @property
    def model_input_names(self) -> list[str]:
        """What the model is given."""
        return [*self.image_processor.model_input_names, "decoder_input_ids"]
