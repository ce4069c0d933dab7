# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from spectralgpt.viz import gallery
from spectralgpt.viz.gallery import Picture, colour_bands, contact_sheet, sample_figure

CLASSES, COLOURS = ("land", "water", "ice"), ("#00ff00", "#0000ff", "#ffffff")
NAMES = ("B04", "B03", "B02")


def picture(dates=None, size=(20, 24), caption="", mask=False, low=1000, high=3000):
    shape = (*([] if dates is None else [dates]), 3, *size)
    image = np.random.default_rng(0).integers(low, high, shape).astype(np.uint16)
    labels = np.zeros(size, np.uint8)
    labels[:5], labels[5:8] = 1, 255
    return Picture(image, NAMES, caption, labels if mask else None)


def images(figure):
    return [np.asarray(axes.get_images()[0].get_array()) for axes in figure.get_axes()]


def test_colours_are_the_nearest_bands():
    assert colour_bands([0.49, 0.56, 0.665, 0.842]) == [2, 1, 0]
    assert colour_bands([2.2, 0.443]) == [1, 1, 1]


def test_a_sample_shows_its_dates_and_its_mask_in_class_colours():
    figure = sample_figure(picture(dates=2, mask=True, caption="forest"), CLASSES, COLOURS, suptitle="above")
    first, second, mask = images(figure)
    assert first.shape == second.shape == mask.shape == (20, 24, 3)
    assert (first.min(), first.max()) == (0, 1)
    np.testing.assert_allclose(mask[2, 3], to_rgb("#0000ff"))
    np.testing.assert_allclose(mask[12, 3], to_rgb("#00ff00"))
    assert mask[6, 3].tolist() not in [list(to_rgb(colour)) for colour in COLOURS]
    titles = [axes.get_title() for axes in figure.get_axes()]
    assert titles == ["date 1", "date 2", "labels"] and figure.get_axes()[0].get_xlabel() == "forest"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["land", "water", "no label"]
    bare = sample_figure(picture(), (), show_titles=False)
    assert bare.get_axes()[0].get_title() == "" and not bare.legends


def test_dates_share_their_stretch_and_bands_keep_their_balance():
    image = np.zeros((2, 3, 10, 10))
    image[0] = np.linspace(1000, 2000, 100).reshape(10, 10)
    image[1] = image[0] + 1000
    before, after = images(sample_figure(Picture(image, NAMES, ""), ()))
    assert before.mean() < 0.45 < 0.6 < after.mean()
    image[:, 2] = 1000 + (image[:, 2] - 1000) / 10  # hardly any blue
    (before, _) = images(sample_figure(Picture(image, NAMES, ""), ()))
    assert before[..., 2].max() < before[..., 0].max() / 2


def test_even_ground_is_not_stretched_to_noise():
    (shown,) = images(sample_figure(picture(low=1000, high=1010), ()))
    assert shown.max() < 0.15


def test_no_data_has_a_colour_of_its_own_and_no_say_in_the_stretch():
    sample = picture()
    valid = np.ones((3, 20, 24), bool)
    valid[1, :4] = False
    sample.image[:, :4] = 0
    (shown,) = images(sample_figure(Picture(sample.image, NAMES, "", valid=valid), ()))
    assert len(np.unique(shown[:4].reshape(-1, 3), axis=0)) == 1
    (alone,) = images(sample_figure(Picture(sample.image[:, 4:], NAMES, ""), ()))
    np.testing.assert_allclose(shown[4:], alone)
    (nothing,) = images(sample_figure(Picture(sample.image, NAMES, "", valid=np.zeros_like(valid)), ()))
    assert np.isfinite(nothing).all()


@pytest.mark.parametrize("count", [1, 7])
def test_a_contact_sheet_holds_every_panel(tmp_path, monkeypatch, count):
    figures = []

    class Kept(gallery.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(gallery, "Figure", Kept)
    pictures = [picture(mask=True, caption=f"number {n}", size=(20, 20 + n)) for n in range(count)]
    contact_sheet(tmp_path / "sheet.png", pictures, CLASSES, title="seven")
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    (figure,) = figures
    assert len(figure.get_axes()) == 2 * count
    boxes = [axes.get_position() for axes in figure.get_axes()]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    overlaps = [a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n]]
    assert not any(overlaps)
    texts = [text.get_text() for text in figure.texts]
    assert texts[:2] == ["seven", "red, green, blue: B04, B03, B02"] and texts[-1] == f"number {count - 1}"
