"What a model needs in memory is read from its headers: in the format it is loaded in, not the one it is stored in."

import json

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from localdpo.backbones import files, full_size, hollow, room
from localdpo.ground.errors import Refused


def header_only(file, model, kind):
    "A safetensors file with the shapes of `model` and no numbers: as long as it should be, and empty on the disk."
    sizes, at, header = dict(F32=4, F16=2, BF16=2), 0, {}
    for name, value in model.state_dict().items():
        if name == "encoder.embed_tokens.weight":  # the same numbers as shared.weight, and in a file once
            continue
        end = at + value.numel() * sizes[kind]
        header[name] = dict(dtype=kind, shape=list(value.shape), data_offsets=[at, end])
        at = end
    text = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)
    return file


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    "The files of Wan2.1-1.3B as they are published, in 32 bits, by their headers."
    folder = tmp_path_factory.mktemp("wan")
    sizes = dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    with torch.device("meta"):
        text_encoder = UMT5EncoderModel(UMT5Config(**sizes))
    models = dict(text_encoder=text_encoder)
    models |= {part: full_size.build("wan2.1-1.3b", part) for part in ("transformer", "vae")}
    return {part: header_only(folder / f"{part}.safetensors", model, "F32") for part, model in models.items()}


def test_wan_in_32_bits_on_disk_is_loaded_in_16_on_a_card_of_24_gb(wan, monkeypatch):
    kinds = dict(text_encoder=torch.bfloat16, transformer=torch.bfloat16, vae=torch.float32)
    assert sum(file.stat().st_size for file in wan.values()) > 28.5e9
    needed = sum(room.loaded_bytes(file, kinds[part]) for part, file in wan.items())
    assert 14e9 < needed < 15e9
    parts = {part: ([file], kinds[part]) for part, file in wan.items()}
    monkeypatch.setattr(room, "free_memory", lambda device: 24e9 * 0.95)  # a card that is not here
    room.check_room("wan", "cuda", parts)
    monkeypatch.setattr(room, "free_memory", lambda device: 12e9)
    said = r"needs about 13.\d\d GiB \(text_encoder 10.58 as bfloat16, transformer 2.\d\d as bfloat16, vae 0.\d\d as float32\)"
    with pytest.raises(Refused, match=said):
        room.check_room("wan", "cuda", parts)


def test_whole_numbers_keep_their_format(tmp_path):
    from safetensors.torch import save_file

    save_file(dict(a=torch.zeros(10, dtype=torch.float16), b=torch.zeros(10, dtype=torch.int64)), tmp_path / "f")
    assert room.loaded_bytes(tmp_path / "f", torch.float32) == 40 + 80
    assert room.loaded_bytes(tmp_path / "f", torch.bfloat16) == 20 + 80


def test_training_asks_for_the_transformer_alone(monkeypatch):
    needed = room.loaded_bytes(
        files.find("tiny-wan-1.3b") / "transformer/diffusion_pytorch_model.safetensors", torch.float32
    )
    monkeypatch.setattr(room, "free_memory", lambda device: needed)
    assert hollow.network("tiny-wan-1.3b", "cpu").dtype == torch.float32
    monkeypatch.setattr(room, "free_memory", lambda device: needed - 1)
    with pytest.raises(Refused, match=r"\(transformer 0.01 as float32\)"):
        hollow.network("tiny-wan-1.3b", "cpu")
