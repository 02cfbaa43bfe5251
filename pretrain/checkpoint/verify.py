"""Everything that can be wrong with a checkpoint without its numbers being looked at."""

from pretrain.checkpoint.index import index_faults, read_index
from pretrain.checkpoint.inventory import Found, sizes_in
from pretrain.config.errors import RunError


def faults_of(found: Found) -> tuple[list[str], int]:
    """Faults of the files as `found` has them and of the index, and how many tensors there are."""
    faults = list(found.faults)
    if found.manifest is None:
        return faults, 0
    try:
        tensors = read_index(found.folder)
    except RunError as error:
        return faults or [error.one_line], 0  # a missing or damaged index was told with the files
    return [*faults, *index_faults(found.folder, tensors, sizes_in(found))], len(tensors)
