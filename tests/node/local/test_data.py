"""A user's file becomes samples and labels, or a sentence that names the file, the fault and the remedy."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lepton.mesh.errors import UsageError
from lepton.node.learning.data import Dataset, DataSource, digits, hold_out, load_data, outputs_of, unlabelled

X = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
Y = np.arange(20) % 4


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


def write_csv(path: Path, text: str) -> Path:
    (path / "data.csv").write_text(text)
    return path / "data.csv"


def rows(*columns: Any, separator: str = ",") -> str:
    return "".join(separator.join(f"{cell:g}" for cell in row) + "\n" for row in np.column_stack(columns))


def test_samples_without_labels_are_read_where_a_teacher_says_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz, csv = write_npz(tmp_path, x=X), write_csv(tmp_path, rows(X))
    (tmp_path / "bare_samples.py").write_text("def x(): return ([[1, 2, 3]] * 20,)")
    monkeypatch.syspath_prepend(tmp_path)
    for where, target in ((npz, None), (csv, "none"), ("bare_samples:x", None)):
        read = load_data(where, target=target, classes=4, labels=False)
        assert (read.labelled, read.classes, len(read.x)) == (False, 4, 16)
        assert read.y_test is not None
        assert (np.concatenate((read.y, read.y_test)) == -1).all()
        assert "can only be taught by another" in DataSource(str(where), target).check()
        with pytest.raises(UsageError, match=r"has no array `y`|without labels|returned tuple"):
            load_data(where, target=target)
    with_test = load_data(write_npz(tmp_path, x=X, x_test=X[:3], y_test=Y[:3]), labels=False)
    assert with_test.y_test is not None
    assert with_test.y_test.tolist() == [0, 1, 2]
    some = write_npz(tmp_path, x=X, y=np.where(Y == 3, -1, Y))
    assert load_data(some, labels=False).labelled
    with pytest.raises(UsageError, match="`y` is -1 at row 3"):
        load_data(some)
    with pytest.raises(UsageError, match="`y` is -2 at row 0"):
        load_data(write_npz(tmp_path, x=X, y=Y - 2), labels=False)
    with pytest.raises(UsageError, match="say `model"):
        outputs_of(unlabelled(X), "cross_entropy")
    assert outputs_of(unlabelled(X), "cross_entropy", announced=5) == 5


def everything(dataset: Dataset) -> dict[bytes, int]:
    """All samples, of both parts, with their labels."""
    assert dataset.x_test is not None
    assert dataset.y_test is not None
    x, y = np.concatenate([dataset.x, dataset.x_test]), np.concatenate([dataset.y, dataset.y_test])
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    return {sample.tobytes(): int(label) for sample, label in zip(x, y, strict=True)}


SAMPLES = {sample.tobytes(): int(label) for sample, label in zip(X, Y, strict=True)}
ONE_HOT = np.eye(4)[Y]


@pytest.mark.parametrize(
    "y", [Y, Y.astype(np.uint8), Y.astype(np.float64), Y[:, None], ONE_HOT, ONE_HOT.astype(bool), ONE_HOT.astype(int)]
)
def test_an_npz_with_index_or_one_hot_labels(tmp_path: Path, y: Any) -> None:
    dataset = load_data(write_npz(tmp_path, x=X, y=y))
    assert everything(dataset) == SAMPLES
    assert (len(dataset.y), dataset.classes, dataset.feature_shape) == (16, 4, (3,))


def test_an_npz_with_its_own_test_part(tmp_path: Path) -> None:
    dataset = load_data(write_npz(tmp_path, x=X[:5], y=Y[:5], x_test=X[5:], y_test=Y[5:]))
    np.testing.assert_array_equal(dataset.x, X[:5])
    assert dataset.x_test is not None
    np.testing.assert_array_equal(dataset.x_test, X[5:])


def test_images_keep_their_shape(tmp_path: Path) -> None:
    dataset = load_data(write_npz(tmp_path, x=np.zeros((10, 8, 8), np.uint8), y=np.arange(10)))
    assert dataset.feature_shape == (8, 8)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "a,b,c,label\n", "\ufeffa, b, c, label\n"])
@pytest.mark.parametrize("ending", ["", "\n", "\n\n\n"])
def test_a_csv_with_the_label_last(tmp_path: Path, separator: str, header: str, ending: str) -> None:
    text = header.replace(",", separator) + rows(X, Y, separator=separator).rstrip("\n") + ending
    dataset = load_data(write_csv(tmp_path, text))
    assert len(dataset.y) == 16
    assert dataset.classes == 4
    assert sorted(everything(dataset).values()) == sorted(Y)


def test_a_csv_with_a_named_label(tmp_path: Path) -> None:
    exact = "".join(f"{label},{','.join(str(cell) for cell in sample)}\n" for sample, label in zip(X, Y, strict=True))
    path = write_csv(tmp_path, "label,a,b,c\n" + exact)
    assert everything(load_data(path, target="label")) == SAMPLES


def test_a_csv_with_one_hot_labels_says_so_first(tmp_path: Path) -> None:
    path = write_csv(tmp_path, rows(X, ONE_HOT))
    with pytest.raises(UsageError, match=r"last 4 columns look one-hot; say target='onehot:4'"):
        load_data(path)
    dataset = load_data(path, target="onehot:4")
    assert dataset.feature_shape == (3,)
    assert sorted(everything(dataset).values()) == sorted(Y)


def test_a_yes_or_no_label_after_its_opposite_is_no_one_hot(tmp_path: Path) -> None:
    assert load_data(write_csv(tmp_path, rows(X, 1 - Y % 2, Y % 2))).feature_shape == (4,)
    assert load_data(write_csv(tmp_path, rows(Y % 2, Y % 2, Y % 2))).feature_shape == (2,)


def test_classes_can_be_announced(tmp_path: Path) -> None:
    assert load_data(write_npz(tmp_path, x=X, y=Y), classes=10).classes == 10
    assert load_data(write_npz(tmp_path, x=X, y=Y * 0)).classes == 2  # one class is nothing to tell apart
    with pytest.raises(UsageError, match=r"data.npz: `y` is 3 at row 3 .*whole numbers 0 to 2"):
        load_data(write_npz(tmp_path, x=X, y=Y), classes=3)
    with pytest.raises(UsageError, match=r"data.npz: holds label 3; labels are whole numbers 0 to 2"):
        load_data(write_npz(tmp_path, x=X, y=ONE_HOT), classes=3)


def test_the_same_fifth_is_held_out_every_time(tmp_path: Path) -> None:
    path = write_npz(tmp_path, x=X, y=Y)
    np.testing.assert_array_equal(load_data(path).x, load_data(path).x)
    other = hold_out(Dataset(x=X, y=Y, classes=4), 0.2, seed=1)
    assert not np.array_equal(load_data(path).x, other.x)


NAN = X.copy()
NAN[7, 1] = np.nan
HUGE = X.astype(np.float64)
HUGE[3, 0] = 1e300


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": X, "y": Y}, "has no array `x` (it has y)"),
        ({"x": X}, "has no array `y` (it has x)"),
        ({"x": X, "y": Y, "x_test": X}, "has only one of `x_test` and `y_test`"),
        ({"x": X[:, 0], "y": Y}, "`x` has shape (20,); it must be"),
        ({"x": X[:0], "y": Y[:0]}, "`x` is empty, shape (0, 3)"),
        ({"x": X[:, :0], "y": Y}, "`x` is empty, shape (20, 0)"),
        ({"x": X, "y": Y[:19]}, "`x` has 20 rows, `y` has 19"),
        ({"x": X, "y": Y, "x_test": X[:2], "y_test": Y[:1]}, "`x_test` has 2 rows, `y_test` has 1"),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, "samples of `x` are (3,), of `x_test` (2,)"),
        ({"x": NAN, "y": Y}, "`x` has NaN or infinity at row 7"),
        ({"x": HUGE, "y": Y}, "`x` has NaN or infinity at row 3"),
        ({"x": X.astype(str), "y": Y}, "`x` holds <U32, not numbers"),
        ({"x": X, "y": Y.astype(str)}, "`y` holds <U21; labels are whole numbers from 0"),
        ({"x": X, "y": Y - 1}, "`y` is -1 at row 0"),
        ({"x": X, "y": Y * 10_000}, "`y` is 10000 at row 1"),
        ({"x": X, "y": Y + 0.5}, "`y` is 0.5 at row 0"),
        ({"x": X, "y": np.where(Y == 2, np.nan, Y)}, "`y` is nan at row 2"),
        ({"x": X, "y": ONE_HOT * 2}, "`y` is not one-hot at row 0"),
        ({"x": X, "y": np.eye(4)[Y] + np.eye(20, 4)}, "`y` is not one-hot at row 0"),
        ({"x": X, "y": np.zeros((20, 2, 2))}, "`y` has shape (20, 2, 2)"),
        ({"x": X[:1], "y": Y[:1]}, "holds 1 sample"),
        ({"x": np.array([{}] * 20), "y": Y}, "is not an .npz of plain arrays, or is damaged (Object arrays"),
    ],
)
def test_a_bad_npz_is_explained(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path, **arrays)
    with pytest.raises(UsageError, match=f"^{re.escape(f'{path}: {message}')}"):
        load_data(path)


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", None, "holds no samples"),
        ("a,b,label\n", None, "holds no samples"),
        ("1\n2\n", None, "has 1 column"),
        ("a,b,label\n1,2,0\n1,2\n", None, "line 3 has 2 columns, the first line has 3"),
        ("1,2,0\n\n1,2,1\n", None, "line 2 has 0 columns"),
        ("1,2,0\n1,x,1\n", None, "line 2, column 2: 'x' is not a finite number"),
        ("a,b,label\n1,,1\n", None, "line 2, column `b`: the cell is empty"),
        ("a,b,label\n1,2,1\nnan,2,1\n", None, "line 3, column `a`: 'nan' is not a finite number"),
        ("a,b,label\n1,2,cat\n", None, "line 2, column `label`: 'cat' is not a finite number; use numbers only"),
        ("1,2,0\n1,2,0.5\n", None, "`labels` is 0.5 at row 1"),
        ("1,2,0\n", None, "holds 1 sample"),
        ("1,1e39,0\n1,2,1\n", None, "`features` has NaN or infinity at row 0"),
        ("1,2,0\n1,2,1\n", "label", "has no header, so no column 'label'"),
        ("1,2," + "0" * 200_000, None, "is not a CSV file: field larger than field limit"),
        ("a,b,label\n1,2,0\n", "labels", "has no column 'labels'; the nearest is 'label'"),
        ("a,a,label\n1,2,0\n", "a", "has 2 columns 'a'"),
        ("1,2,0\n1,2,1\n", "onehot:3", "target 'onehot:3': give onehot:K with K from 2 to 2"),
        ("1,2,0\n1,2,1\n", "onehot:x", "target 'onehot:x': give onehot:K"),
        ("1,1,0\n1,1,1\n", "onehot:2", "`labels` is not one-hot at row 1"),
    ],
)
def test_a_bad_csv_is_explained(tmp_path: Path, text: str, target: str | None, message: str) -> None:
    path = write_csv(tmp_path, text)
    with pytest.raises(UsageError, match=f"^{re.escape(f'{path}: {message}')}"):
        load_data(path, target=target)


def test_what_is_no_data_file_is_explained(tmp_path: Path) -> None:
    for name, content, message in [
        ("none.npz", None, "no such file"),
        ("a.txt", b"1", "reads an .npz, a .csv, .*; not .txt"),
        ("a", b"1", "not a file without an ending"),
        ("a.npz", b"", "is not an .npz of plain arrays, or is damaged"),
        ("a.npz", b"hello", "is not an .npz of plain arrays, or is damaged"),
        ("a.npz", npy(), "is a single array, not an .npz"),
        ("a.csv", b"\xff\xfe1,2\n", "is not text"),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: .*{message}"):
            load_data(path)
    with pytest.raises(UsageError, match=r"`target` is for tables and images"):
        load_data(write_npz(tmp_path, x=X, y=Y), target="y")


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, X)
    return file.getvalue()


def test_one_sample_cannot_be_divided() -> None:
    with pytest.raises(UsageError, match="1 samples are too few to hold any out"):
        hold_out(Dataset(x=X[:1], y=Y[:1], classes=4), 0.2, seed=0)


def test_a_file_that_may_not_be_read_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_csv(tmp_path, rows(X, Y))
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        load_data(path)


def saved_npz(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, x=X, y=Y)
    return file.getvalue()


@given(
    st.sampled_from([saved_npz(np.savez), saved_npz(np.savez_compressed)]), st.integers(0, 1200), st.binary(max_size=4)
)
def test_a_damaged_npz_gives_usage_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, place: int, patch: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(data[:place] + patch + (data[place + len(patch) :] if patch else b""))
    load_or_explain(path)


@given(st.text("0123,;\t.\n\"'xe-", max_size=60))
def test_any_text_gives_a_data_set_or_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(text)
    load_or_explain(path)


def load_or_explain(path: Path) -> None:
    try:
        load_data(path)
    except UsageError as error:
        message = str(error)
    else:
        return
    assert message.startswith(f"{path}: ")


def test_the_digits_are_scaled_and_divided_by_a_seed() -> None:
    first, same, other = digits(3), digits(3), digits(4)
    assert first.x_test is not None
    assert (first.x.shape, first.x_test.shape, first.classes) == ((1438, 64), (359, 64), 10)
    assert (first.x.min(), first.x.max()) == (0, 1)
    np.testing.assert_array_equal(first.x, same.x)
    assert not np.array_equal(first.x, other.x)
