"""Parquet, folders of images and functions as data sources: each becomes a data set, or a clear error."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from lepton.mesh.errors import UsageError
from lepton.node.learning.data import Dataset, data_source, load_data, load_samples
from lepton.node.learning.formats import images
from PIL import Image
from pyarrow import parquet


def write_parquet(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path / "data.parquet")
    return path / "data.parquet"


COLUMNS = {"a": [0.5, 1.5, 2.5, 3.5], "b": [1, 2, 3, 4], "label": [0, 1, 0, 1]}


def test_parquet_has_its_label_last_or_where_the_target_says(tmp_path: Path) -> None:
    dataset = load_data(write_parquet(tmp_path, **COLUMNS))
    assert dataset.feature_shape == (2,)
    assert dataset.classes == 2
    named = load_data(write_parquet(tmp_path, **COLUMNS), target="b", classes=5)
    assert named.feature_shape == (2,)
    assert load_samples(tmp_path / "data.parquet").x.shape == (4, 3)
    assert load_samples(tmp_path / "data.parquet", target="label").x.shape == (4, 2)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"a": ["x", "y"], "label": [0, 1]}, "column `a` holds string, not numbers"),
        ({"a": [1.0, None], "label": [0, 1]}, "column `a` has 1 empty cells"),
        ({"a": [1.0, 2.0]}, "1 columns; give features and a label"),
        ({"a": [1.0, float("nan")], "label": [0, 1]}, "NaN or infinity at row 1"),
    ],
)
def test_parquet_that_cannot_be_learned_from_says_which_column(
    tmp_path: Path, columns: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        load_data(write_parquet(tmp_path, **columns))


def test_a_damaged_parquet_or_a_missing_library_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UsageError, match="is not a Parquet file, or is damaged"):
        load_data(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'lepton-node\[parquet\]'"):
        load_data(path)


def folder_of(tmp_path: Path, *names: str, size: tuple[int, int] = (10, 6)) -> Path:
    for shade, name in enumerate(names):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", size, (80 * shade,) * 3).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_images_come_in_one_size_in_grey_with_the_classes_that_the_target_lists(tmp_path: Path) -> None:
    dataset = load_data(folder_of(tmp_path, "cat", "dog"), target="4x8:dog,cat,fox")
    assert dataset.feature_shape == (4, 8)
    assert dataset.classes == 3
    assert dataset.x_test is not None
    shades = {int(label): float(x.mean()) for x, label in zip(dataset.x, dataset.y, strict=True)}
    assert shades == pytest.approx({0: 80 / 255, 1: 0.0})


def test_folders_that_are_numbers_need_no_list(tmp_path: Path) -> None:
    dataset = load_data(folder_of(tmp_path, "0", "2"), target="4x4")
    assert sorted({*dataset.y, *(dataset.y_test if dataset.y_test is not None else ())}) == [0, 2]
    assert dataset.classes == 3


@pytest.mark.parametrize(
    ("names", "target", "why"),
    [
        (("cat",), None, r"@28x28:cat,dog"),
        (("cat",), "0x4", r"@28x28:cat,dog"),
        (("cat",), "28x28", "other nodes would not know its number"),
        (("cat", "cow"), "28x28:cat,dog", "'cow' is not among the classes cat, dog"),
        (("cat",), "28x28:cat,cat", "names a class twice"),
        ((), "28x28", "holds no folders"),
    ],
)
def test_a_folder_that_cannot_be_learned_from_is_explained(
    tmp_path: Path, names: tuple[str, ...], target: str | None, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        load_data(folder_of(tmp_path, *names), target=target)


def test_a_file_that_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "0")
    (folder / "0" / "notes.txt").write_text("not an image, and not called one")
    load_data(folder, target="4x4", classes=2)
    (folder / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(UsageError, match=f"^{re.escape(str(folder / '0' / 'broken.png'))}: is not an image"):
        load_data(folder, target="4x4")
    (folder / "0" / "broken.png").unlink()
    monkeypatch.setattr(images, "PIXELS_MAX", 59)
    with pytest.raises(UsageError, match="10 x 6 pixels are too many"):
        load_data(folder, target="4x4")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("made_for_a_test")
    monkeypatch.setitem(sys.modules, "made_for_a_test", made)
    return made


def test_a_function_may_return_arrays_with_and_without_a_test_part(module: ModuleType) -> None:
    x, y = np.zeros((10, 3)), np.arange(10) % 2
    module.two = lambda: (x, y)  # type: ignore[attr-defined]
    module.four = lambda: (x, y, x[:3], y[:3])  # type: ignore[attr-defined]
    module.whole = lambda: Dataset(x=x.astype(np.float32), y=y, classes=2)  # type: ignore[attr-defined]
    for name, held_out in (("two", 2), ("four", 3), ("whole", 2)):
        dataset = load_data(f"made_for_a_test:{name}")
        assert dataset.y_test is not None
        assert len(dataset.y_test) == held_out


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("no_such_module:data", "cannot be imported"),
        ("made_for_a_test:nothing", "has no 'nothing'"),
        ("made_for_a_test:number", "returned int; return"),
        ("made_for_a_test:uneven", "`x` has 3 rows, `labels` has 2"),
        ("made_for_a_test:shapes", "make them equal"),
    ],
)
def test_a_function_that_gives_no_data_is_explained(module: ModuleType, where: str, why: str) -> None:
    module.number = lambda: 5  # type: ignore[attr-defined]
    module.uneven = lambda: (np.zeros((3, 2)), [0, 1])  # type: ignore[attr-defined]
    module.shapes = lambda: (np.zeros((3, 2)), [0, 1, 0], np.zeros((3, 4)), [0, 1, 0])  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=why):
        load_data(where)


def test_configurations_name_files_from_their_folder_and_functions_as_they_are(tmp_path: Path) -> None:
    assert data_source("part.npz", tmp_path) == (str(tmp_path / "part.npz"), None)
    assert data_source("part.csv@onehot:10", tmp_path) == (str(tmp_path / "part.csv"), "onehot:10")
    assert data_source("frames@28x28:a,b", tmp_path) == (str(tmp_path / "frames"), "28x28:a,b")
    assert data_source("clinic.data:load", tmp_path) == ("clinic.data:load", None)
    (tmp_path / "a:b").write_text("")
    assert data_source("a:b", tmp_path) == (str(tmp_path / "a:b"), None)
