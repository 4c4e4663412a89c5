"""The size of a micro-batch is found by halving."""

from rankray.memory import halve_until


def test_halves_until_it_passes() -> None:
    asked: list[int] = []

    def passes(size: int) -> bool:
        asked.append(size)
        if size > 20:
            raise MemoryError
        return size <= 7

    assert halve_until(passes, 50, MemoryError) == 7
    assert asked == [50, 25, 13, 7]
    assert halve_until(lambda size: False, 8, MemoryError) == 1
