"""The memory that is available on a device."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from matfree_torch.autograd import graph_memory  # noqa: E402


def test_available_memory_respects_the_limit_of_the_container(tmp_path, monkeypatch):
    available = graph_memory.available_memory(torch.device("cpu"))
    assert available is None or available > 2**20
    assert graph_memory.available_memory(torch.device("meta")) is None
    for name, text in {
        "memory.max": "1000000",
        "memory.current": "900000",
        "memory.stat": "anon 100\ninactive_file 50000",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(graph_memory, "_GROUP", tmp_path)
    assert graph_memory.available_memory(torch.device("cpu")) == 150000
    (tmp_path / "memory.max").write_text("max")
    assert graph_memory.available_memory(torch.device("cpu")) != 150000
    assert graph_memory.readable(3 * 2**30) == "3 GiB"
