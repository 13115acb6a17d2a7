"""Opening and writing weight files: what is refused, what is said, what is left behind."""

import contextlib
import errno
import gc
import hashlib
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as peer_load
from safetensors.torch import save_file as peer_save
from torch import Tensor, nn

from sfumato.checkpoints import hashes
from sfumato.checkpoints.hashes import content_hash, file_hashes, remembered, verify
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.load import load_into, outlines
from sfumato.checkpoints.sniff import NOT_A_CHECKPOINT, sniff
from sfumato.checkpoints.store import open_file, open_shards
from sfumato.checkpoints.write import atomic_file, atomic_folder, save_file, save_shards
from sfumato.core.errors import CapacityError, CheckpointError
from tests.conftest import ROOT, shared


def sample() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(3, 5),
        "a.half": torch.randn(7).half(),
        "a.brain": torch.randn(2, 3, 4).bfloat16(),
        "scalar": torch.tensor(3.5),
        "ids": torch.arange(6).reshape(2, 3),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
    }


def same(a: Tensor, b: Tensor) -> bool:
    bits = [t.reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def test_reads_what_the_formats_own_library_writes(tmp_path: Path) -> None:
    peer_save(sample(), tmp_path / "x.anything", {"who": "peer"})
    file = open_file(tmp_path / "x.anything")
    assert file.format == "safetensors"
    assert file.metadata == {"who": "peer"}
    assert file.tensors.keys() == sample().keys()
    for name, tensor in sample().items():
        assert same(file.tensors[name].read(), tensor)
        assert file.tensors[name].nbytes == tensor.nbytes


def test_the_formats_own_library_reads_what_is_written(tmp_path: Path) -> None:
    save_file(tmp_path / "x.safetensors", lazy_all(sample()), {"who": "wir"})
    for name, tensor in peer_load(tmp_path / "x.safetensors").items():
        assert same(tensor, sample()[name])
    file = open_file(tmp_path / "x.safetensors")
    assert file.metadata["who"] == "wir"
    assert file.metadata["format"] == "pt"
    assert verify(file)


def test_a_mapped_tensor_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    save_file(tmp_path / "x", lazy_all(sample()))
    before = (tmp_path / "x").read_bytes()
    tensor = open_file(tmp_path / "x").tensors["b.weight"].read()
    tensor += 1
    assert torch.equal(tensor, sample()["b.weight"] + 1)
    assert (tmp_path / "x").read_bytes() == before


def test_an_unaligned_header_is_read(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (3 - len(header) % 8 + 8)
    data = struct.pack("<Q", len(header)) + header + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "x").write_bytes(data)
    assert open_file(tmp_path / "x").tensors["x"].read().tolist() == [1.5, -2.0]


def forge(path: Path, header: Any, body: bytes = b"\0" * 8) -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(begin: int, end: int, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 6), "b": entry(4, 8)}, "overlap"),
        ({"a": entry(0, 2), "b": entry(4, 8)}, "2 bytes between them"),
        ({"a": entry(2, 8)}, "2 bytes before 'a'"),
        ({"a": entry(0, 6)}, "2 bytes after the last tensor"),
        ({"a": entry(0, 80)}, r"truncated: \d+ bytes of \d+"),
        ({"a": entry(0, 8, [3])}, "cannot lie at"),
        ({"a": entry(0, 8, [-8])}, "damaged"),
        ({"a": entry(0, 8, [8], "F4")}, "precision not read"),
        ({"a": {"dtype": "U8"}}, "damaged"),
        ({"a": entry(0, 8), "__metadata__": {"n": 3}}, "__metadata__"),
        (b'{"a": ' + json.dumps(entry(0, 8)).encode() + b', "a": ' + json.dumps(entry(0, 8)).encode() + b"}", "twice"),
        (b'{"a": ', "damaged"),
    ],
)
def test_a_forged_header_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        open_file(forge(tmp_path / "x", header))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.02])
def test_a_truncated_file_says_how_much_is_there(tmp_path: Path, keep: float) -> None:
    save_file(tmp_path / "x", lazy_all({"a": torch.randn(1000)}))
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"truncated: [\d,]+ bytes of"):
        open_file(tmp_path / "x")


@pytest.mark.parametrize(("magic", "meaning"), NOT_A_CHECKPOINT)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, magic: bytes, meaning: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(magic + b" and more" * 9)
    with pytest.raises(CheckpointError) as raised:
        sniff(tmp_path / "model.safetensors")
    assert meaning in str(raised.value)


def test_nothing_empty_or_unknown_is_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file or folder"):
        sniff(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        sniff(tmp_path / "empty")
    (tmp_path / "noise").write_bytes(bytes(range(200, 256)) * 4)
    with pytest.raises(CheckpointError, match="neither"):
        sniff(tmp_path / "noise")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_pickled_weights_are_read(tmp_path: Path, zipped: bool, nested: bool) -> None:
    weights = {"a": torch.randn(3), "b.c": torch.randn(2, 2).half()}
    content = {"state_dict": weights, "global_step": 7, "callbacks": {}} if nested else weights
    torch.save(content, tmp_path / "x.safetensors", _use_new_zipfile_serialization=zipped)
    file = open_file(tmp_path / "x.safetensors")
    assert file.tensors.keys() == weights.keys()
    assert all(same(file.tensors[n].read(), weights[n]) for n in weights)
    assert file.metadata == ({"global_step": "7"} if nested else {})


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("wrap", ["zip", "legacy", "plain"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"a": torch.zeros(2)}, "x": Hostile()}
    if wrap == "plain":
        (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"x": Hostile()}, 4))
    else:
        torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=wrap == "zip")
    with pytest.raises(CheckpointError) as raised:
        open_file(tmp_path / "x.ckpt")
    assert "unsafe" in str(raised.value)
    assert "system" in str(raised.value) or wrap == "plain"
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "owned").exists()


def test_a_trainers_leavings_are_read_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    vars(module)["ModelCheckpoint"] = kind
    beside = {kind: {"best": np.float64(1.5), "made": kind()}}
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": beside}, tmp_path / "x")
    assert open_file(tmp_path / "x").tensors["a"].read().tolist() == [1.0, 1.0]
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pickle_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": torch.randn(1000)}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x").read_bytes()
    for keep in (len(whole) - 100, len(whole) // 2, 100):
        (tmp_path / "x").write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            open_file(tmp_path / "x")


def test_a_pickle_without_weights_is_refused(tmp_path: Path) -> None:
    for content in ([1, 2], {"epoch": 3}):
        torch.save(content, tmp_path / "x")
        with pytest.raises(CheckpointError, match=r"not a table|no weights"):
            open_file(tmp_path / "x")


def test_real_pickled_weights() -> None:
    file = open_file(shared("weights/taef2_encoder.pth"))
    assert file.format == "torch zip"
    assert {t.dtype for t in file.tensors.values()} == {torch.float16}


# --- writing ---------------------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    save_file(tmp_path / "x", lazy_all({"a": torch.zeros(4)}))
    before = (tmp_path / "x").read_bytes()

    def failing(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    expected = CheckpointError if code == errno.EIO else CapacityError
    with pytest.raises(expected, match="not written") as raised:
        save_file(tmp_path / "x", lazy_all({"a": torch.ones(4)}))
    assert os.strerror(code) in str(raised.value)
    assert leftovers(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == before


def save_two(folder: Path) -> None:
    with atomic_folder(folder) as made:
        save_file(made / "small", lazy_all({"a": torch.zeros(4)}))
        save_file(made / "large", lazy_all({"a": torch.zeros(400_000)}))


def test_a_limit_of_file_size_leaves_nothing(tmp_path: Path) -> None:
    """The system itself refuses the bytes (EFBIG), in the middle of a folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CapacityError, match="not written") as caught:
            save_two(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / "model") in str(caught.value)
    assert ".part" not in str(caught.value)
    assert leftovers(tmp_path) == []


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert leftovers(tmp_path) == []


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("keep")
    with pytest.raises(CheckpointError, match="exists already"), atomic_folder(tmp_path / "model"):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model", overwrite=True):
        raise ZeroDivisionError
    assert leftovers(tmp_path / "model") == ["mine"]
    with atomic_folder(tmp_path / "model", overwrite=True) as made:
        (made / "new").touch()
    assert leftovers(tmp_path / "model") == ["new"]
    assert leftovers(tmp_path) == ["model"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not written"):
        save_file(tmp_path / "absent" / "x", lazy_all({"a": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="no name for"):
        save_file(tmp_path / "x", lazy_all({"a": torch.zeros(1, dtype=torch.complex64)}))
    assert leftovers(tmp_path) == []


def test_shards_and_variants(tmp_path: Path) -> None:
    weights = {f"w{i}": torch.randn(10, 10) for i in range(5)}
    save_shards(tmp_path, "model", lazy_all(weights), variant="fp16", dtype=torch.float16, max_bytes=450)
    assert leftovers(tmp_path) == [
        "model.fp16-00001-of-00003.safetensors",
        "model.fp16-00002-of-00003.safetensors",
        "model.fp16-00003-of-00003.safetensors",
        "model.safetensors.index.fp16.json",
    ]
    file = open_shards(tmp_path / "model.safetensors.index.fp16.json")
    assert all(same(file.tensors[n].read(), weights[n].half()) for n in weights)
    (tmp_path / "model.fp16-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.fp16-00002-of-00003"):
        open_shards(tmp_path / "model.safetensors.index.fp16.json")


def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_shards(tmp_path / "i.json")


# --- hashes ----------------------------------------------------------------------------------------------------------


def test_the_content_hash_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    weights = sample()
    expected = content_hash(lazy_all(weights))
    assert save_file(tmp_path / "x", lazy_all(weights), {"other": "header"}) == expected
    peer_save(weights, tmp_path / "y")
    assert content_hash(open_file(tmp_path / "y").tensors) == expected
    changed = dict(reversed(weights.items()))
    assert content_hash(lazy_all(changed)) == expected
    changed["scalar"] = torch.tensor(3.25)
    assert content_hash(lazy_all(changed)) != expected
    assert content_hash(lazy_all({**weights, "scalar": weights["scalar"].reshape(1)})) != expected


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    save_file(tmp_path / "x", lazy_all({"a": torch.randn(100), "b": torch.randn(100)}))
    whole = bytearray((tmp_path / "x").read_bytes())
    for position in (len(whole) - 1, len(whole) - 500):
        changed = bytearray(whole)
        changed[position] ^= 1
        (tmp_path / "x").write_bytes(changed)
        with pytest.raises(CheckpointError, match="is damaged"):
            verify(open_file(tmp_path / "x"))
    peer_save({"a": torch.zeros(1)}, tmp_path / "y")
    assert not verify(open_file(tmp_path / "y"))


def test_no_changed_byte_passes(tmp_path: Path) -> None:
    """Damage anywhere is an error, or it is in a text of the header's metadata and the tensors are what they were."""
    weights = {"first.weight": torch.randn(3, 4), "second.bias": torch.randn(5).half()}
    save_file(tmp_path / "x", lazy_all(weights), {"title": "a model"})
    whole = (tmp_path / "x").read_bytes()
    random = np.random.default_rng(0)
    messages: list[str] = []
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= int(random.integers(1, 256))
        (tmp_path / "x").write_bytes(changed)
        try:
            file = open_file(tmp_path / "x")
            verify(file)
        except CheckpointError as problem:
            messages.append(str(problem))
        else:
            assert all(same(file.tensors[name].read(), tensor) for name, tensor in weights.items())
    assert len(messages) > 0.8 * len(whole)
    assert not [m for m in messages if "\n" in m]


def test_no_changed_byte_of_a_pickle_escapes(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save({"a": torch.arange(6)}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / "x").read_bytes()
        random = np.random.default_rng(1)
        for position in random.choice(len(whole), 250, replace=False):
            changed = bytearray(whole)
            changed[position] ^= int(random.integers(1, 256))
            (tmp_path / "x").write_bytes(changed)
            with contextlib.suppress(CheckpointError):  # and nothing else
                open_file(tmp_path / "x")


def test_a_hash_is_remembered_while_its_files_do_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"one")
    asked = 0

    def compute() -> str:
        nonlocal asked
        asked += 1
        return f"{asked}"

    assert [remembered(paths, "x", compute) for _ in range(2)] == ["1", "2"]  # too small to be worth it
    monkeypatch.setattr(hashes, "REMEMBERED_ABOVE", 6)
    assert [remembered(p, "x", compute) for p in (paths, paths, paths[::-1])] == ["3", "3", "3"]
    assert remembered(paths, "y", compute) == "4"
    (tmp_path / "b").write_bytes(b"two")
    assert [remembered(paths, "x", compute) for _ in range(2)] == ["5", "5"]
    (tmp_path / "cache" / "sfumato" / "hashes.json").write_text("[")
    assert [remembered(paths, "x", compute) for _ in range(2)] == ["6", "6"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))  # no folder: nothing is kept, nothing fails
    assert [remembered(paths, "x", compute) for _ in range(2)] == ["7", "8"]


def test_file_hashes(tmp_path: Path) -> None:
    peer_save({"a": torch.arange(500_000)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    found = file_hashes(tmp_path / "x")
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.autov1 == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert found.autov2 == found.sha256[:10]
    header = 8 + struct.unpack("<Q", data[:8])[0]
    assert found.autov3 == hashlib.sha256(data[header:]).hexdigest()[:12]
    torch.save({"a": torch.zeros(2)}, tmp_path / "y")
    assert file_hashes(tmp_path / "y").autov3 is None


# --- loading ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.arange(4, device="cpu"), persistent=False)


def test_load_into_is_a_view_where_nothing_changes(tmp_path: Path) -> None:
    source = Net()
    save_file(tmp_path / "x", lazy_all(source.state_dict()))
    net = load_into(Net, open_file(tmp_path / "x").tensors, "x")
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), source.state_dict().values(), strict=True))
    assert not net.training
    assert net.conv.weight.requires_grad
    assert net.conv.weight.untyped_storage().nbytes() >= 3 * 4 * 9 * 4
    half = load_into(Net, open_file(tmp_path / "x").tensors, "x", dtype=torch.float16, channels_last=True)
    assert half.conv.weight.dtype == torch.float16
    assert half.norm.num_batches_tracked is not None
    assert half.norm.num_batches_tracked.dtype == torch.int64
    assert half.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_drawn_to_fill_what_is_to_be_loaded() -> None:
    """Random numbers on the meta device would bring torch's compiler in, for seconds."""
    code = (
        "import sys; from sfumato.checkpoints.load import shapes_of; from sfumato.models.clip_text import *;"
        "shapes_of(lambda: ClipText(CLIP_L)); sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with outlines():
        assert nn.Linear(2, 2).weight.is_meta
        filled = nn.init.ones_(torch.empty(2, device="cpu"))
    assert torch.equal(filled, torch.ones(2))


def test_what_does_not_fit_is_listed() -> None:
    weights = lazy_all(Net().state_dict())
    weights["conv.bias"] = lazy_all({"x": torch.zeros(5)})["x"]
    del weights["norm.weight"]
    weights |= lazy_all({f"lora.{i:02}": torch.zeros(1) for i in range(20)})
    with pytest.raises(CheckpointError) as raised:
        load_into(Net, weights, "some/file", seems="a LoRA")
    message = str(raised.value)
    assert message.startswith("some/file does not fit Net: missing 1 (norm.weight); unknown 20 (lora.00, ")
    assert "lora.07, …" in message
    assert "lora.08" not in message
    assert "conv.bias is [5], not [4]" in message
    assert message.endswith("It seems to be a LoRA.")


def test_a_buffer_that_would_be_lost_is_a_mistake_of_the_module() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(4), persistent=False)

    with pytest.raises(TypeError, match=r"Wrong\.table"):
        load_into(Wrong, {}, "x")


PEAK = """
import sys, torch
from pathlib import Path
from torch import nn
from sfumato.checkpoints.store import open_file
from sfumato.checkpoints.load import load_into
def build():
    return nn.ModuleList(nn.Conv2d(384, 384, 3) for _ in range(16))
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
def touch(net):
    return sum(float(p.detach().flatten()[::100].sum()) for p in net.parameters())
with torch.device("meta"):
    build()
touch(nn.Linear(3, 3))
half = {"dtype": torch.float16, "channels_last": True}
for how in ({}, {"channels_last": True}, half):
    net = None
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    before = peak()
    net = load_into(build, open_file(Path(sys.argv[1])).tensors, "x", **how)
    touch(net)
    print((peak() - before) / sum(p.numel() * p.element_size() for p in net.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_copy_in_memory(tmp_path: Path) -> None:
    """85 MB of weights: the peak is at most 1.15 times what the module holds, and one tensor where it is converted."""
    shapes = (("weight", (384, 384, 3, 3)), ("bias", (384,)))
    weights = {f"{i}.{p}": torch.zeros(s) for i in range(16) for p, s in shapes}
    save_file(tmp_path / "x", lazy_all(weights))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "x")]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    mapped, reordered, half = map(float, printed.split())
    assert mapped < 1.15
    assert reordered < 1.15
    assert half < 1.15 + 2 / 16


def test_the_file_object_is_binary_and_seekable(tmp_path: Path) -> None:
    def use(file: BinaryIO) -> None:
        file.write(b"12345")
        file.seek(0)
        file.write(b"9")

    with atomic_file(tmp_path / "x") as file:
        use(file)
    assert (tmp_path / "x").read_bytes() == b"92345"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
