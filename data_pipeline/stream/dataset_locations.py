"""Opens the prepared datasets that a configuration names."""

from pathlib import Path

from data_pipeline.config import CacheConfig, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.shards.folder import DatasetFolder, LocalFolder
from data_pipeline.storage.urls import PIPE, is_url, sibling


def open_folder(address: str, cache: CacheConfig) -> DatasetFolder:
    """The folder at a path or a URL."""
    if not is_url(address):
        return LocalFolder(Path(address))
    from data_pipeline.remote.folder import RemoteFolder

    return RemoteFolder(address, cache)


def dataset_folders(data: DataConfig) -> dict[str, DatasetFolder]:
    """The prepared datasets that a run reads, by name: those of the mixture, or the one at data.path."""
    if data.mixture is None:
        return {data.name: open_folder(data.path, data.cache)}
    if data.path.startswith(PIPE):
        raise DataError(
            f"data.path={data.path}: a mixture needs a folder or a URL, not a command, because its datasets are "
            "beside data.path"
        )
    beside = sibling if is_url(data.path) else lambda path, name: str(Path(path).parent / name)
    return {name: open_folder(beside(data.path, name), data.cache) for name in data.mixture}
