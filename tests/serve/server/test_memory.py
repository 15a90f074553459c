import platform

from tfrec_attn.serve.server import memory


def test_the_allocator_takes_it_where_it_is_glibc():
    assert memory.give_back() == (platform.libc_ver()[0] == "glibc")
