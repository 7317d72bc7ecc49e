"""Images that are decoded once into files: the same bits, whatever happens on the way."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import ddengine
from ddengine.data import block_file, cache, decoder, decoding, load_data
from ddengine.data.block_file import BlockFile
from ddengine.data.decoder import Decoder
from ddengine.recipe import DataConfig, resolved
from ddengine.system import digests
from ddengine.system.errors import UserError
from synth.catalogue import find

CPU = torch.device("cpu")
SIDE = 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Files of several blocks, of few images."""
    monkeypatch.setattr(block_file, "BLOCK", 5 * 3 * SIDE * SIDE)


def fill(root, num=12, mode="RGB"):
    """Images of noise in two classes, with a test split."""
    rng = np.random.default_rng(0)
    for split, of_split in (("train", num), ("test", 4)):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(of_split):
                pixels = rng.integers(0, 256, (SIDE + i % 2, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / split / name / f"{i:02}.png")
    return root


def config_of(root, **more):
    return DataConfig(name="folder", root=str(root), size=(SIDE, SIDE), validation=0.2, **more)


def load(config):
    return load_data(config, CPU, test=True)


def assert_equal(one, other):
    """Two datasets are the same to the bit, and the same is said of them."""
    for split in ("train", "validation", "test"):
        first, second = getattr(one, split), getattr(other, split)
        assert torch.equal(first.pixels, second.pixels) and torch.equal(first.labels, second.labels)
        assert first.digest == second.digest
        assert torch.equal(first.preprocess.mean, second.preprocess.mean)
        assert torch.equal(first.preprocess.std, second.preprocess.std)
    assert one.notes == other.notes and one.split_names == other.split_names


def unusual(root):
    """A folder whose images are of many kinds; the only one in colour comes late."""
    fill(root, mode="L")
    rng = np.random.default_rng(1)
    deep = rng.integers(0, 4000, (SIDE, SIDE)).astype(np.uint16)
    Image.fromarray(deep).save(root / "train/a/05.png")
    frames = [Image.new("L", (SIDE, SIDE), 10 * i) for i in range(1, 3)]
    frames[0].save(root / "train/a/06.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (SIDE, SIDE), (9, 99, 199, 128)).save(root / "train/b/10.png")
    Image.new("CMYK", (SIDE, SIDE), (9, 99, 199, 0)).save(root / "train/b/11.jpg")
    Image.fromarray(deep + 500).save(root / "test/b/01.png")
    return root


@pytest.mark.parametrize("make", [fill, unusual])
def test_a_cache_holds_the_bits_that_memory_would(tmp_path, monkeypatch, make):
    monkeypatch.setattr(decoder, "PROBED", 1)  # so that colour is found late
    root = make(tmp_path / "images")
    held = load(config_of(root, cache="none"))
    config = config_of(root, cache=str(tmp_path / "cache"))
    made, opened = load(config), load(config)
    assert_equal(held, made)
    assert_equal(held, opened)
    assert bool(opened.notes) == (make is unusual)
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 2
    for _ in range(3):
        draws = []
        for data in (held, opened):
            rng = torch.Generator().manual_seed(1)
            draws.append(data.train.images(data.train.draw_each(4, rng).flatten()))
        assert torch.equal(*draws)
    subsets = [ddengine.data.subset.class_subset(data, [1]) for data in (held, opened)]
    assert torch.equal(subsets[0].train.pixels, subsets[1].train.pixels)


def test_parquet_is_read_by_groups_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(ddengine.data.tables, "KEPT", 0)
    root = fill(tmp_path / "images")
    (tmp_path / "table").mkdir()
    for split in ("train", "test"):
        paths = sorted((root / split).rglob("*.png"))
        rows = {"image": [path.read_bytes() for path in paths]}
        rows["label"] = [path.parent.name for path in paths]
        pq.write_table(pa.table(rows), tmp_path / "table" / f"{split}.parquet", row_group_size=7)
    config = replace(config_of(tmp_path / "table", cache="none"), name="parquet")
    held = load(config)
    assert torch.equal(held.train.pixels, load(config_of(root, cache="none")).train.pixels)
    assert_equal(held, load(replace(config, cache=str(tmp_path / "cache"))))


@pytest.mark.parametrize("kind", ["bytes", "struct", "named", "texts"])
def test_a_finished_cache_of_parquet_reads_no_bytes_of_images(tmp_path, monkeypatch, kind):
    """Only the paths, of files that are looked at as those of a folder are."""
    root = fill(tmp_path / "table")
    for split in ("train", "test"):
        paths = sorted((root / split).rglob("*.png"))
        names = [path.relative_to(root).as_posix() for path in paths]
        rows = {
            "bytes": [path.read_bytes() for path in paths],
            "struct": [{"bytes": path.read_bytes(), "path": path.stem} for path in paths],
            "named": [{"bytes": None, "path": name} for name in names],
            "texts": names,
        }[kind]
        bare = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {
            "image": pa.array(rows, bare if isinstance(rows[0], dict) else None),
            "label": [path.parent.name for path in paths],
        }
        pq.write_table(pa.table(columns), root / f"{split}.parquet", row_group_size=7)
    config = replace(config_of(root, cache=str(tmp_path / "cache")), name="parquet")
    made = load(config)
    fields = []
    read = pq.ParquetFile.read_row_group

    def noticed(self, number, columns):
        fields.extend(columns)
        return read(self, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noticed)
    assert_equal(load(config), made)
    wanted = {"bytes": set(), "struct": {"image.path"}, "named": {"image.path"}, "texts": {"image"}}
    assert set(fields) == wanted[kind]
    caches = len(list((tmp_path / "cache").glob("*/manifest.json")))
    os.utime(root / "train/a/03.png", (1, 1))
    load(config)
    changed = len(list((tmp_path / "cache").glob("*/manifest.json"))) - caches
    assert bool(changed) == (kind in ("named", "texts"))


def test_what_was_decoded_before_a_kill_is_not_decoded_again(tmp_path, monkeypatch):
    root = fill(tmp_path / "images")
    config = config_of(root, cache=str(tmp_path / "cache"))
    written = []
    write = BlockFile.write

    def killed(self, number, pixels):
        if len(written) == 2:
            self.path.with_name("pixels.u8").open("r+b").write(b"half")  # of a block, unsaid
            raise KeyboardInterrupt
        written.append(number)
        return write(self, number, pixels)

    monkeypatch.setattr(BlockFile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        load(config)
    lines = next((tmp_path / "cache").glob("*/blocks.jsonl"))
    lines.write_text(lines.read_text() + '{"block": 2, "dig')
    seen = []
    monkeypatch.setattr(
        BlockFile, "write", lambda self, k, pixels: seen.append(k) or write(self, k, pixels)
    )
    finished = load(config)
    # block 0 was overwritten by half a block, block 1 is as it was
    assert seen[:4] == [0, 2, 3, 4] and written == [0, 1]
    assert_equal(load(config_of(root, cache="none")), finished)
    assert not list((tmp_path / "cache").glob("*/b*"))


def test_two_processes_decode_once(tmp_path, monkeypatch):
    root = fill(tmp_path / "images")
    config = config_of(root, cache=str(tmp_path / "cache"))
    decoded, ready = [], threading.Event()
    read_into = Decoder.read_into

    def slow(self, pixels, order, *args):
        decoded.extend(order)
        ready.set()
        return read_into(self, pixels, order, *args)

    monkeypatch.setattr(Decoder, "read_into", slow)
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(load(config))) for _ in range(2)]
    for thread in threads:
        thread.start()
        ready.wait(10)
    for thread in threads:
        thread.join()
    assert len(decoded) == 24 + 8
    assert_equal(*loaded)


def damage(folder, kind):
    pixels = folder / "pixels.u8"
    if kind == "bit":
        content = bytearray(pixels.read_bytes())
        content[-1] ^= 4
        pixels.write_bytes(content)
    if kind == "cut":
        os.truncate(pixels, 100)
    if kind == "gone":
        pixels.unlink()
    if kind == "manifest":
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace('"several"', '"cut"'))
    if kind == "looks":
        content = bytearray((folder / "images.safetensors").read_bytes())
        content[-1] ^= 4
        (folder / "images.safetensors").write_bytes(content)


@pytest.mark.parametrize("kind", ["bit", "cut", "gone", "manifest", "looks"])
def test_damage_is_said_and_found_by_verify(tmp_path, kind):
    config = config_of(fill(tmp_path / "images"), cache=str(tmp_path / "cache"))
    load_data(config, CPU)
    (folder,) = [path.parent for path in (tmp_path / "cache").glob("*/manifest.json")]
    assert not any(row["damaged"] for row in ddengine.verify(tmp_path / "cache").rows)
    damage(folder, kind)
    with pytest.raises(UserError, match=r"decoded images in .* delete that folder, and"):
        load_data(config, CPU)
    assert any(row["damaged"] for row in ddengine.verify(tmp_path / "cache").rows)


def test_a_changed_file_or_setting_is_another_cache(tmp_path):
    root = fill(tmp_path / "images")
    config = config_of(root, cache=str(tmp_path / "cache"))

    def caches():
        load_data(config, CPU)
        return len(list((tmp_path / "cache").glob("*/manifest.json")))

    assert caches() == caches() == 1
    os.utime(root / "train/a/03.png", (1, 1))
    assert caches() == 2
    config = replace(config, fit="crop")
    assert caches() == 3
    config = replace(config, root=os.path.relpath(root))  # which decides no pixel
    assert caches() == 3


def test_what_fits_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = fill(tmp_path / "images")
    load(config_of(root))
    assert not (tmp_path / "home").exists()
    needed = 24 * 3 * SIDE * SIDE
    monkeypatch.setattr(cache, "available_memory", lambda device: 4 * needed - 4)
    assert_equal(load(config_of(root, cache="none")), load(config_of(root)))
    assert len(list(tmp_path.glob("home/ddengine/images/*/manifest.json"))) == 1  # test images fit
    monkeypatch.chdir(tmp_path / "images")  # from elsewhere it is found again
    monkeypatch.setattr(cache, "_make", lambda *_: pytest.fail("decoded again"))
    load(config_of(root))


def test_the_folder_of_caches_that_nobody_names(tmp_path, monkeypatch):
    """One of before is used where it is; no other depends on where a command was started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for stated in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", stated)
        assert cache.default_folder() == tmp_path / "me/.cache/ddengine/images"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache.default_folder() == tmp_path / "caches/ddengine/images"
    (tmp_path / "runs/.images").mkdir(parents=True)
    assert cache.default_folder() == tmp_path / "caches/ddengine/images"
    (tmp_path / "runs/.images" / cache.MARK).touch()
    assert cache.default_folder() == tmp_path / "runs/.images"


def test_no_identity_depends_on_where_images_are_decoded():
    recipe = find("dm/cifar10_ipc10")
    other = replace(recipe, data=replace(recipe.data, cache="elsewhere"))
    assert resolved(recipe) == resolved(other)
    assert other.data.from_anywhere().cache == str(Path.cwd() / "elsewhere")
    assert recipe.data.from_anywhere() == recipe.data
    assert other.data.without_places() == recipe.data.without_places() == recipe.data


def refused(config):
    with pytest.raises(UserError) as raised:
        load(config)
    return str(raised.value)


def test_folders_that_cannot_hold_a_cache_are_refused(tmp_path):
    root = fill(tmp_path / "images")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(config_of(root, cache=str(tmp_path / "file")))
    assert "holds other things" in refused(config_of(root, cache=str(tmp_path)))
    assert "lies in data.root" in refused(config_of(root, cache=str(root / "cache")))
    assert "cannot be written" in refused(config_of(root, cache="/proc/cache"))
    held = ddengine.Dataset.of((torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.arange(4) % 2))
    with pytest.raises(UserError, match="stored as pixels"):
        held.load(DataConfig(name="own", cache=str(tmp_path / "new")), CPU)
    with pytest.raises(UserError, match="is empty"):
        config_of(root, cache="")
    assert not (tmp_path / "new").exists() and not (root / "cache").exists()


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    def full(handle, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    said = refused(config_of(fill(tmp_path / "images"), cache=str(tmp_path / "cache")))
    assert (
        "has no room for the decoded images, which take 2.59 kB" in said and "--data.cache" in said
    )
    monkeypatch.undo()
    monkeypatch.setattr(block_file, "BLOCK", 5 * 3 * SIDE * SIDE)
    load(config_of(tmp_path / "images", cache=str(tmp_path / "cache")))


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_bad_images_are_named_as_without_a_cache(tmp_path, content):
    root = fill(tmp_path / "images")
    bad = root / "train/b/07.png"
    bad.write_bytes(bad.read_bytes()[:60] if content == "cut" else content)
    without = refused(config_of(root, cache="none"))
    assert refused(config_of(root, cache=str(tmp_path / "cache"))) == without
    assert str(bad) in without


def test_an_unfinished_cache_is_verified_too(tmp_path, monkeypatch):
    config = config_of(fill(tmp_path / "images"), cache=str(tmp_path / "cache"))
    monkeypatch.setattr(decoding.Making, "_finish", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(config)
    assert not any(row["damaged"] for row in ddengine.verify(tmp_path / "cache").rows)
    damage(next((tmp_path / "cache").glob("*/begun.json")).parent, "bit")
    assert any(row["damaged"] for row in ddengine.verify(tmp_path / "cache").rows)


def test_a_digest_that_does_not_belong_to_the_images_is_noticed(tmp_path):
    config = config_of(fill(tmp_path / "images"), cache=str(tmp_path / "cache"))
    load_data(config, CPU)
    path = next((tmp_path / "cache").glob("*/manifest.json"))
    facts = json.loads(path.read_text())
    facts["of"]["num"] += 1
    facts.pop(digests.KEY)
    path.write_text(json.dumps(facts | {digests.KEY: digests.of_facts(facts)}))
    assert "of other images" in refused(config)
