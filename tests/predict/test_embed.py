# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import torch

import spectralgpt
from spectralgpt.cli import main
from spectralgpt.data.bands import SENTINEL2_12, sensor_card
from spectralgpt.data.normalize import fit
from spectralgpt.data.raster_write import write_cog
from spectralgpt.data.scene import Scene
from spectralgpt.heads.features import feature_maps
from spectralgpt.predict.components import Components
from spectralgpt.predict.embed import embedding_function, mean_colours, parts, tile_means
from spectralgpt.predict.layers import value_layer
from tests.data.rasters import UTM, noise, write

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "decoder_embed_dim": 32, "decoder_depth": 1, "image_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene of no round size with a hole, and a pretrained model's folder."""
    folder = tmp_path_factory.mktemp("embed")
    pixels = noise(12, 67, 90)
    pixels[:, :10, :10] = 0  # no data
    write(folder / "scene.tif", pixels, SENTINEL2_12, nodata=0)
    torch.manual_seed(0)
    model = spectralgpt.create_autoencoder("tiny", bands=sensor_card("sentinel2").select(SENTINEL2_12), **SMALL)
    model.normalization = {"method": "percentile", "band_names": list(SENTINEL2_12)}
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def out(folder):
    command = ["embed", str(folder / "scene.tif"), "--model", str(folder / "model"), "--out", str(folder / "e.tif")]
    assert main([*command, "--batch-size", "3"]) == 0
    return folder / "e.tif"


def test_a_vector_for_every_patch_on_the_scene_s_grid(out):
    with rasterio.open(out) as file:
        found = file.read()
        assert file.crs == UTM["crs"] and np.isnan(file.nodata)
        assert tuple(file.transform)[:6] == (80, 0, 500_000, 0, -80, 5_000_000)
        assert file.shape == (9, 12) and file.count == 24
    hole = np.zeros((9, 12), bool)
    hole[:2, :2] = True
    np.testing.assert_array_equal(np.isnan(found).any(0), hole)
    assert np.isfinite(found[:, ~hole]).all() and found[:, ~hole].std(1).min() > 0


def test_windows_do_not_change_what_they_agree_on(folder, tmp_path):
    """Without overlap, the first window holds exactly the encoder's tokens."""
    scene = Scene.open(folder / "scene.tif", "sentinel2", SENTINEL2_12)
    command = ["embed", str(folder / "scene.tif"), "--model", str(folder / "model"), "--out", str(tmp_path / "e.tif")]
    assert main([*command, "--overlap", "0", "--keep-places"]) == 0
    values, valid = scene.read(32, 32, 32, 32)
    assert valid.all()
    image = torch.from_numpy(fit(scene, "percentile").apply(values))[None]
    with torch.no_grad():
        expected = feature_maps(spectralgpt.from_pretrained(folder / "model").eval().encoder, image)[0][0].numpy()
    with rasterio.open(tmp_path / "e.tif") as file:
        # rows 4 to 8 belong to the second row of windows alone up to where the last one, at rows 5 to 9, begins
        np.testing.assert_allclose(file.read()[:, 4, 4:8], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_places_in_the_window_are_taken_away(folder, out):
    """Windows of one colour say the same everywhere; of a scene, less of the variance is that of places."""
    scene = Scene.open(folder / "scene.tif", "sentinel2", SENTINEL2_12)
    encoder = spectralgpt.from_pretrained(folder / "model").eval().encoder
    torch.nn.init.normal_(encoder.positions.spatial)  # as strong as training makes them
    colours = mean_colours(scene, fit(scene, "percentile"))
    assert colours.shape == (12,) and (colours - 0.5).abs().max() < 0.1
    flat = colours[None, :, None, None].expand(2, 12, 32, 32)
    with torch.no_grad():
        kept, removed = (
            embedding_function(encoder, "mean", -1, taken, torch.device("cpu"))(flat)
            for taken in (None, lambda: colours)
        )
    assert kept.std((2, 3)).mean() > 0.1 and removed.std((2, 3)).max() < 1e-4


def test_the_components_are_those_of_all_vectors(out):
    vectors = np.concatenate([pixels[:, valid].T for _, _, pixels, valid in parts(out)])
    assert vectors.shape == (9 * 12 - 4, 24)
    components = Components()
    for piece in np.array_split(vectors, 7):
        components.add(piece)
    mean, axes = components.axes(3)
    centred = vectors - vectors.mean(0)
    _, _, expected = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(mean, vectors.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.abs((axes * expected[:3]).sum(1)), 1, atol=1e-6)
    with rasterio.open(out.with_name("e-components.tif")) as file:
        picture = file.read()
        assert file.count == 4 and file.transform.a == 80
    assert (picture[3] == 0).sum() == 4 and not picture[:3, picture[3] == 0].any()
    scores = centred @ axes[0]
    red = picture[0][picture[3] > 0]
    assert np.corrcoef(scores, red)[0, 1] > 0.95, "red is the first component"
    assert out.with_name("e-components.png").stat().st_size > 100


def test_hundreds_of_bands_can_be_read_back(tmp_path):
    """Blocks hold all bands together, and the reader refuses large ones."""
    scene = Scene.open(write(tmp_path / "scene.tif", noise(1, 520, 530), ["B02"]), "sentinel2", ["B02"])
    for count, size in ((130, (520, 530)), (1100, (20, 30))):
        layer = value_layer(tmp_path / "out.tif", scene, [f"embedding_{i}" for i in range(count)])
        layout = replace(layer.layout, shape=size)
        write_cog(layer.path, layout, [(0, np.ones((count, *size), np.float32))])
        assert sum(valid.size for _, _, _, valid in parts(layer.path)) == size[0] * size[1]
        assert all(valid.all() and (vectors == 1).all() for _, _, vectors, valid in parts(layer.path))


def test_what_is_there_is_not_read_again(folder, out, capsys, monkeypatch):
    """The same command finds its work done without a pass over the scene."""
    monkeypatch.setattr("spectralgpt.predict.look_commands.normalize", lambda *_, **__: pytest.fail("read again"))
    command = ["embed", str(folder / "scene.tif"), "--model", str(folder / "model"), "--out", str(out)]
    assert main([*command, "--batch-size", "3"]) == 0
    assert "is there already" in capsys.readouterr().out


def test_tiles(folder, out, capsys):
    command = ["embed", str(folder / "scene.tif"), "--model", str(folder / "model"), "--out", str(out)]
    assert main([*command, "--batch-size", "3", "--tile", "16"]) == 0
    assert "is there already" in capsys.readouterr().out
    table = geopandas.read_parquet(out.with_name("e-tiles.parquet"))
    means, shares = tile_means(out, 2)
    assert shares.shape == (5, 6) and shares[0, 0] == 0 and len(table) == 29
    with rasterio.open(out) as file:
        found = file.read()
    np.testing.assert_allclose(means[1, 2], found[:, 2:4, 4:6].mean((1, 2)), rtol=1e-5)
    row = table[(table["row"] == 16) & (table["column"] == 32)].iloc[0]
    np.testing.assert_allclose(row["embedding"], means[1, 2])
    assert row.geometry.bounds == (500_320, 5_000_000 - 320, 500_480, 5_000_000 - 160)
    assert table.crs == UTM["crs"]
    last = table[(table["row"] == 64) & (table["column"] == 80)].iloc[0]
    assert last.geometry.bounds == (500_800, 5_000_000 - 670, 500_900, 5_000_000 - 640), "cut to the scene"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tile", "12"], "multiple of the patch's 8 pixels"),
        (["--out", "e.png"], "ends in .tif"),
        (["--layer", "7"], "layer"),
        (["--model", "none"], "expected a run or a model's folder"),
        (["--bands", "B02"], "expected 12 as the model has"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, extra, message):
    command = ["embed", str(folder / "scene.tif"), "--model", str(folder / "model"), "--out", str(tmp_path / "e.tif")]
    assert main([*command, *extra]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1]
    assert not list(tmp_path.glob("*.tif"))


def test_reconstruct_writes_what_the_model_rebuilds(folder, tmp_path, capsys):
    command = ["reconstruct", str(folder / "scene.tif"), "--model", str(folder / "model"), "--out"]
    out = tmp_path / "rebuilt"
    assert main([*command, str(out), "--mask-ratio", "0.75"]) == 0
    assert "PSNR" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "error.tif", "metrics.json", "overview.png", "rebuilt.tif", "windows.png",
    ]  # fmt: skip
    scene = Scene.open(folder / "scene.tif", "sentinel2", SENTINEL2_12)
    truth, valid = scene.read(0, 0, *scene.shape)
    with rasterio.open(out / "rebuilt.tif") as file:
        rebuilt = file.read()
        assert file.crs == UTM["crs"] and file.transform == UTM["transform"] and file.descriptions == SENTINEL2_12
    np.testing.assert_array_equal(np.isnan(rebuilt), ~valid)
    normalization = fit(scene, "percentile")
    seen = np.isclose(rebuilt, truth, rtol=1e-4, atol=0.01) & valid
    tokens = seen[:, :64, :88].reshape(4, 3, 8, 8, 11, 8).all((1, 3, 5))
    assert 0.15 < tokens.mean() < 0.35, "a quarter of the tokens is seen, the others are not"
    metrics = json.loads((out / "metrics.json").read_text())
    hidden = ~np.isclose(rebuilt, truth, rtol=1e-4, atol=0.01) & valid
    hidden[:, :16, :16] = False  # tokens with missing pixels are not scored, nor are those cut by the border
    hidden[:, 64:], hidden[:, :, 88:] = False, False
    error = (normalization.apply(rebuilt) - normalization.apply(truth))[hidden]
    assert metrics["psnr"] == pytest.approx(-10 * np.log10(np.square(error).mean()), abs=0.05)
    assert set(metrics["bands"]) == set(SENTINEL2_12) and metrics["mask_ratio"] == 0.75
    again = tmp_path / "again"
    assert main([*command, str(again), "--mask-ratio", "0.75", "--batch-size", "2"]) == 0
    with rasterio.open(again / "rebuilt.tif") as file:
        np.testing.assert_allclose(file.read(), rebuilt, rtol=1e-3, atol=1)
    assert main([*command, str(out)]) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "x"), "--mask-ratio", "1"]) == 2
    assert "share between 0 and 1" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "rebuilt"], "nothing half done stays"


def test_a_rebuilt_scene_is_not_written_over_while_read(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    scene = tmp_path / "out" / "rebuilt.tif"
    scene.write_bytes((folder / "scene.tif").read_bytes())
    before = scene.read_bytes()
    command = ["reconstruct", str(scene), "--model", str(folder / "model"), "--out", str(tmp_path / "out")]
    assert main([*command, "--overwrite"]) == 2
    assert "got a file that is read" in capsys.readouterr().err and scene.read_bytes() == before
