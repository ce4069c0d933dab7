# SPDX-License-Identifier: Apache-2.0
"""Probes against scikit-learn on the same features, and on real files through the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import spectralgpt
from spectralgpt import cli
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.errors import UserError
from spectralgpt.evaluate.probe import logistic_regression, probe
from tests.evaluate.settings import BANDS, TINY, coloured, evaluate

CLASSES = ("a", "b", "c")


def blobs(seed, count=90):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    features = rng.normal(size=(count, 7)) * np.arange(1, 8) + labels[:, None] * 1.5
    features[:, 6] = 4.0  # a feature that is always the same
    return torch.from_numpy(features), torch.from_numpy(labels)


def test_linear_probe_is_logistic_regression():
    train, test = blobs(0), blobs(1)
    scaler = StandardScaler().fit(train[0].numpy())
    model = LogisticRegression(tol=1e-10, max_iter=5000).fit(scaler.transform(train[0].numpy()), train[1].numpy())
    scaled = torch.from_numpy(scaler.transform(train[0].numpy()))
    weight, bias = logistic_regression(scaled, train[1], 3)
    assert weight.numpy() == pytest.approx(model.coef_, abs=1e-5)
    assert (bias - bias.mean()).numpy() == pytest.approx(model.intercept_ - model.intercept_.mean(), abs=1e-5)
    found = probe("linear", train, test, CLASSES, tuple("x" * 90))
    guess = model.predict(scaler.transform(test[0].numpy()))
    assert found.scores.compute()["accuracy"] == pytest.approx((guess == test[1].numpy()).mean())


def test_several_labels_are_regressions_of_their_own():
    features, labels = blobs(0)
    several = torch.stack([labels == 0, labels < 2, labels > 0], 1).long()
    scaled = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1)
    weight, _ = logistic_regression(scaled, several, 3)
    for k in range(3):
        model = LogisticRegression(tol=1e-10, max_iter=5000).fit(scaled.numpy(), several[:, k].numpy())
        assert weight[k].numpy() == pytest.approx(model.coef_[0], abs=1e-5)
    assert (
        probe("linear", (features, several), (features, several), CLASSES, tuple("x" * 90)).scores.compute()["count"]
        == 90
    )


def test_nearest_neighbours():
    train, test = blobs(0), blobs(1)
    scaler = StandardScaler().fit(train[0].numpy())
    model = KNeighborsClassifier(5).fit(scaler.transform(train[0].numpy()), train[1].numpy())
    share = model.predict_proba(scaler.transform(test[0].numpy()))
    clear = np.sort(share, 1)[:, -1] > np.sort(share, 1)[:, -2]  # of equal votes scikit-learn takes the lower class
    found = probe("knn", train, test, CLASSES, tuple("x" * 90))
    guess = found.cell % 3
    assert clear.sum() > 60
    assert (guess[clear] == share.argmax(1)[clear]).all()


def test_one_class_teaches_nothing():
    features, labels = blobs(0)
    with pytest.raises(UserError, match="at least two classes"):
        probe("linear", (features, labels * 0), (features, labels), CLASSES, tuple("x" * 90))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return coloured(tmp_path_factory.mktemp("archive"), count=30)


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_classes_that_differ_in_brightness_are_told_by_any_encoder(archive, tmp_path, kind):
    model = spectralgpt.create_autoencoder("tiny", bands=SENTINEL2.select(BANDS), decoder_embed_dim=16,
                                           decoder_num_heads=2, decoder_depth=1, **TINY)  # fmt: skip
    model.normalization = {"method": "fixed", "band_names": list(BANDS), "offset": [1000.0] * 3, "scale": [0.001] * 3}
    model.save_pretrained(tmp_path / "model")
    options = ["--data.dataset", "folder", "--data.root", str(archive), "--data.options", "[table=single.csv]"]
    results = evaluate(
        "--model", str(tmp_path / "model"), *options, "--probe", kind, "--neighbours", "3", "--out", str(tmp_path / "o")
    )
    assert results["scores"]["accuracy"] > 0.9 and results["images"] == 20
    assert results["probe"] == {"knn": "3 nearest neighbours", "linear": "linear"}[kind]


def test_the_split_that_is_learnt_from_is_not_scored(archive, tmp_path, capsys):
    encoder = spectralgpt.create_model("tiny", bands=SENTINEL2.select(BANDS), **TINY)
    encoder.save_pretrained(tmp_path / "model")
    options = ["--data.dataset", "folder", "--data.root", str(archive), "--data.options", "[table=single.csv]"]
    arguments = ["evaluate", "--model", str(tmp_path / "model"), *options, "--probe", "knn", "--split", "train"]
    assert cli.main(arguments) == 2
    assert "got 10 of data.train_split train in train" in capsys.readouterr().err
