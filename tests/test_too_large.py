"""A batch that was too large for a model is in the log, once in a while."""

import pytest

from ventu_lite import Service
from ventu_lite.too_large import TooLargeLog


def test_a_batch_that_is_too_large_for_the_model_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service("too large", request=int, response=int)

    @service.infer(batch=True)
    def infer(batch: list[int]) -> list[int]:
        if len(batch) > 2:
            raise MemoryError("no room on the device")
        return batch

    with caplog.at_level("WARNING", "ventu_lite"):
        assert service.predict_batch([1, 2, 3, 4]) == [1, 2, 3, 4]
        assert service.predict_batch([1, 2, 3, 4]) == [1, 2, 3, 4]  # told already
    (record,) = caplog.records
    assert "raised for 4 items together" in record.message
    assert "MemoryError: no room on the device (" in record.message
    assert record.message.endswith(
        "; if that comes again, lower max_batch_size or, where items differ in size, pad them to"
        " one or give `key=`, so that only items of one size meet"
    )


def test_it_is_told_again_after_a_while_and_of_each_function(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    log = TooLargeLog(lambda: now)
    for where in ("a", "a", "b"):
        log(where, 4, MemoryError())
    now += 10
    log("a", 4, MemoryError())
    assert [message[0] for message in caplog.messages] == ["a", "b", "a"]
