"""accelerate's big-model loading and peft's adapters on the recurrent models."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.helpers.models import batch, tiny_model

accelerate = pytest.importorskip("accelerate", reason="accelerate (of the extra `train`) is not installed")


def saved(folder: Path, **options: object) -> tuple[Path, torch.nn.Module]:
    model = tiny_model(dtype=torch.float32, **options)
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}], ids=str)
def test_device_maps(tmp_path: Path, device_map: object) -> None:
    folder, model = saved(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder, device_map=device_map)
    given = batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**given).loss.cpu(), model(**given).loss)
    sources = {name: given[name] for name in ("input_ids", "attention_mask")}
    options = {"num_beams": 2, "max_new_tokens": 5}
    assert loaded.generate(**sources, **options).tolist() == model.generate(**sources, **options).tolist()


def test_a_device_map_does_not_split_layers() -> None:
    model = tiny_model(encoder_layers=2, decoder_layers=2)
    sizes = accelerate.utils.compute_module_sizes(model)
    limit = max(sizes["model.decoder"], sizes["model.encoder"]) + 1
    given = accelerate.infer_auto_device_map(
        model, {0: limit, 1: limit, "cpu": 10 * limit}, no_split_module_classes=list(model._no_split_modules)
    )
    assert not [name for name in given if name.startswith("model.decoder.")], given
    assert not [name for name in given if name.startswith("model.encoder.layers.0.")], given


@pytest.mark.parametrize("place", ["model.decoder", "model.encoder", "lm_head"])
def test_offload_to_the_disk_is_refused(tmp_path: Path, place: str) -> None:
    folder, _ = saved(tmp_path / "model")
    device_map = {name: "cpu" for name in ("model.encoder", "model.bridge", "model.decoder", "lm_head")}
    with pytest.raises(ValueError, match=rf"device_map=.*: leaves {place}\S* \(one of \d+ weights\) outside"):
        AutoModelForSeq2SeqLM.from_pretrained(
            folder, device_map=device_map | {place: "disk"}, offload_folder=str(tmp_path / "offload")
        )


@pytest.mark.parametrize("attention", ["additive", "general"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lora_on_the_linear_parts(attention: str) -> None:
    """Only adapters are trained; they are used on every path (training, generate(), search), and can be merged.

    The fused forms of training (both) and of the search (general) read weights past the modules: they give way.
    """
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = tiny_model(dtype=torch.float32, attention_type=attention, input_feeding=True)
    given = batch()
    sources = {name: given[name] for name in ("input_ids", "attention_mask")}
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["query", "key", "project", "lm_head"])
    adapted = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.Adam((one for one in adapted.parameters() if one.requires_grad), lr=0.05)
    frozen = {name: value.clone() for name, value in adapted.state_dict().items() if "lora_" not in name}
    losses = []
    for _ in range(12):
        loss = adapted(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    state = adapted.state_dict()
    assert all(torch.equal(state[name], value) for name, value in frozen.items())
    learned = {name.split(".lora_B")[0].rpartition(".")[2] for name, value in state.items() if "lora_B" in name}
    assert learned == {"key", "project", "lm_head"} | ({"query"} if attention == "additive" else set())
    assert all(value.abs().max() > 0 for name, value in state.items() if "lora_B" in name), "one learned nothing"
    adapted.eval()
    with torch.no_grad():
        logits = adapted(**given).logits
    options = {"num_beams": 2, "max_new_tokens": 6}
    written, found = adapted.generate(**sources, **options), adapted.base_model.model.search(**sources, **options)
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(**given).logits, logits, atol=1e-4, rtol=1e-4)
    assert merged.generate(**sources, **options).tolist() == written.tolist() == found.tolist()
