from __future__ import annotations

from frcli.diskmap import DiskMap


def test_names_stand_for_numbers_until_it_is_closed() -> None:
    table = DiskMap()
    assert table.get("a") is None
    table.set("a", 1, 2)
    table.set("\u00e9", 2**62)
    table.set("a", 3)
    assert (table.get("a"), table.get("\u00e9"), len(table)) == ((3, 0), (2**62, 0), 2)
    table.close()
    again = DiskMap()
    assert len(again) == 0
    again.close()
