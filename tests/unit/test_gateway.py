from __future__ import annotations

from llama_deploy.services.gateway import _JOURNAL_REQUEST_BYTES, _cut


def test_writes_are_cut_into_requests_of_a_limited_size() -> None:
    quarter = b"x" * (_JOURNAL_REQUEST_BYTES // 4)
    large = b"y" * (_JOURNAL_REQUEST_BYTES * 2)
    groups = list(_cut([quarter, quarter, large, *[quarter] * 5]))
    assert [len(group) for group in groups] == [2, 1, 4, 1]
    assert list(_cut([])) == []
