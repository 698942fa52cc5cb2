# SPDX-License-Identifier: Apache-2.0
"""Open a dataset: find out what the user's object is, and how its elements are read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_embed.core import user_code
from ray_embed.errors import InputError
from ray_embed.sources import hugging_face, keras_directory
from ray_embed.sources.dataset import Dataset, PickledObject
from ray_embed.sources.elements import Fields

_FORMS = (
    "expected a tf.data.Dataset, a sequence (__len__ and __getitem__), or an iterable, of img, "
    "(img, gt) or (img, gt, img_path)"
)


@dataclass(frozen=True)
class OpenedDataset:
    """An open dataset.

    `content` is the object that gives the elements. `fields` are those of elements that are dicts.
    `class_names` are the names of labels that are whole numbers, and `paths` those of the records
    in their order; both may be empty. `notes` are messages for the user.
    """

    content: Any
    fields: Fields
    class_names: Sequence[str] = ()
    paths: Sequence[str] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        """Yield the elements."""
        content = self.content
        if hasattr(content, "as_numpy_iterator"):
            yield from content.as_numpy_iterator()
        elif is_sequence(content):
            for position in range(len(content)):
                yield content[position]
        else:
            yield from content


def open_dataset(source: Dataset) -> OpenedDataset:
    """Open a dataset, by calling the function that returns it if it is one.

    Raises:
        InputError: the function fails, or returns something that gives no elements, or the object
            can be read only once.
    """
    content = source.source
    if isinstance(content, PickledObject):
        content = _unpickle(content, source.where)
    if isinstance(content, str) or _is_function(content):
        content = user_code.call_reference(content, source.kwargs, source.where)
    elif isinstance(content, Iterator):
        raise InputError(
            f"{source.where}: a {type(content).__name__} can be read only once, so that a run "
            "could not be resumed; give the function that returns it instead"
        )
    fields = Fields(source.image_column, source.label_column, source.key_column)
    if hugging_face.is_dict(content):
        content = hugging_face.choose_split(content, source.split, source.where)
    if hugging_face.is_dataset(content):
        stored = hugging_face.keep_stored(content, fields)
        return OpenedDataset(stored.content, stored.fields, stored.class_names, (), stored.notes)
    if isinstance(content, (str, bytes, Mapping)) or not (
        is_sequence(content) or isinstance(content, Iterable)
    ):
        raise InputError(f"{source.where}: {_FORMS}, got {type(content).__name__}")
    class_names, of_names = keras_directory.find_class_names(content)
    paths, of_paths = keras_directory.find_paths(content)
    return OpenedDataset(content, fields, class_names, paths, (*of_names, *of_paths))


def _unpickle(content: PickledObject, where: str) -> Any:
    try:
        return content.load()
    except Exception as error:
        raise InputError(
            f"{where}: the object cannot be opened here: {type(error).__name__}: {error}; name a "
            "function that returns it, as module:callable"
        ) from error


def is_in_memory(content: Any) -> bool:
    """Return whether the images of a sequence are in the memory of this process."""
    return isinstance(content, (list, tuple)) or hasattr(content, "__array__")


def is_sequence(content: Any) -> bool:
    """Return whether the elements of an object are read by their positions."""
    # Iterable datasets of PyTorch inherit a __getitem__ that fails.
    is_iterable = any(class_.__name__ == "IterableDataset" for class_ in type(content).__mro__)
    return hasattr(content, "__len__") and hasattr(content, "__getitem__") and not is_iterable


def _is_function(content: Any) -> bool:
    if user_code.is_factory(content):
        return True
    has_elements = any(hasattr(content, name) for name in ("__getitem__", "__iter__"))
    return callable(content) and not has_elements
