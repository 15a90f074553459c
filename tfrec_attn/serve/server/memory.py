"""What a large request took goes back to the system when it is answered."""

import ctypes

# Of glibc's malloc.h. Unless it is set, it rises to the largest block that was ever freed;
# blocks below it come from heaps, one for each of many threads, that rarely shrink.
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20


def give_back() -> bool:
    """Lets blocks of 1 MiB and more be mapped one by one; False where malloc is another."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE))
    except (AttributeError, OSError, TypeError):
        return False
