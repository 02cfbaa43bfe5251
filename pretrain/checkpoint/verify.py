"""The faults of a checkpoint that can be found without reading the numbers in it."""

from pretrain.checkpoint.index import index_faults, read_index
from pretrain.checkpoint.inventory import Found, sizes_in
from pretrain.config.errors import RunError


def faults_of(found: Found) -> tuple[list[str], int]:
    """The faults of the files, which `found` has, and of the index; and the number of tensors."""
    faults = list(found.faults)
    if found.manifest is None:
        return faults, 0
    try:
        tensors = read_index(found.folder)
    except RunError as error:
        return faults or [error.one_line], 0  # the faults of the files include the index
    return [*faults, *index_faults(found.folder, tensors, sizes_in(found))], len(tensors)
