"""Bounds on what one filter may be, so that no filter makes an event cost more than a known amount.

Documented in docs/filters.md; a filter beyond one of them is refused when subscribing.
"""

from typing import Final

MAX_CHARACTERS: Final = 65_536
"""Characters of all names, values and expressions in one filter together."""
MAX_DEPTH: Final = 16
"""Levels of `all`, `any` and `not` inside each other."""
MAX_NODES: Final = 4_096
"""Filter expressions and operands in one subscription."""
MAX_OPERANDS: Final = 1_024
"""Members of one `all` or `any`, values of one `in`, and `types`."""
MAX_EXPRESSION_NODES: Final = 2_048
"""Operators and operands of all CloudEvents SQL expressions in one subscription."""
MAX_SCANS: Final = 16
"""`LIKE` patterns in one subscription with a `_` between two `%`: they go through the value character by character."""
MAX_NAME: Final = 128
"""Characters of one attribute name."""
MAX_VALUE: Final = 4_096
"""Characters of one value."""
MAX_POINTER_TOKENS: Final = 16
"""Steps of one JSON Pointer into `data`."""
MAX_DISJUNCTS: Final = 1_024
"""Conjunctions that one filter may become in the index; past it, the rest is evaluated, not indexed."""
