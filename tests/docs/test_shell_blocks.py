"""Which lines of a page are commands."""

from __future__ import annotations

import pytest
from shell_blocks import Command, find_commands, find_inline

PAGE = r"""
# A page

frcli in a sentence, and `frcli doctor` in line; `frcli models list\|show` in a table.

```sh
frcli one   # said of it
# a remark

frcli two --a \
    --b
for e in x y; do
    frcli $e
done
cat > rows.jsonl <<'END'
{"prompt": "`frcli not one`"}

END
```

```console
$ frcli three 'a
> b'
what it says
$ frcli four
```

```text
frcli what is shown only
```

    frcli five --c \
        --d
    what it says
    python benchmarks/six.py

A sentence that goes on
    frcli in its second line.

- a list

  ```bash
  frcli seven
  ```

<!-- exit: 2 -->
```sh
frcli eight
```

<!-- exit: 1 -->

    frcli nine

    frcli ten
"""


def test_commands_of_every_kind() -> None:
    assert find_commands(PAGE) == [
        Command(7, "frcli one   # said of it"),
        Command(10, "frcli two --a \\\n    --b"),
        Command(12, "for e in x y; do\n    frcli $e\ndone"),
        Command(15, 'cat > rows.jsonl <<\'END\'\n{"prompt": "`frcli not one`"}\n\nEND'),
        Command(22, "frcli three 'a\nb'"),
        Command(25, "frcli four"),
        Command(32, "frcli five --c \\\n    --d"),
        Command(35, "python benchmarks/six.py"),
        Command(43, "frcli seven"),
        Command(48, "frcli eight", exit=2),
        Command(53, "frcli nine", exit=1),
        Command(55, "frcli ten"),
    ]


def test_what_is_said_in_line() -> None:
    assert find_inline(PAGE) == [(4, "frcli doctor"), (4, "frcli models list|show")]


@pytest.mark.parametrize("text", ["frcli 'open", "for e in x; do", "cat <<END", "frcli \\"])
def test_what_bash_cannot_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="line 3: bash cannot read"):
        find_commands(f"\n```sh\n{text}\n```\n")
