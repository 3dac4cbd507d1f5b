"""What the conformance cases gave, by file, for the end of the test output."""

from collections.abc import Iterator

RESULTS: dict[str, tuple[int, int]] = {}
"""By file: how many cases passed, of how many."""
EXPLANATION = (
    "  not passed, and not meant to: NOT 10 (not_operator.yaml) expects a cast error, "
    "where the specification's cast table (3.7) casts every integer to Boolean"
)


def lines() -> Iterator[str]:
    """A line for each file, and one for all; none if the cases weren't run."""
    if not RESULTS:
        return
    passed, cases = map(sum, zip(*RESULTS.values(), strict=True))
    yield f"CloudEvents SQL conformance: {passed} of {cases} cases in {len(RESULTS)} files"
    for name, (ok, all_of_them) in sorted(RESULTS.items()):
        yield f"  {name:<40}{ok:>4} of {all_of_them}"
    yield EXPLANATION
