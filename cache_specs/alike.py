"""Which views are too alike to teach each other: what their specs say of one another."""

from cache_specs.spec import load_spec, view_names


def alike(views: list[str]) -> dict[tuple[str, str], str]:
    """The pairs of these views of which one's spec says that they are too alike, and why; each pair
    once. What is no bundled view has no say."""
    found: dict[tuple[str, str], str] = {}
    for one in sorted(set(views) & set(view_names())):
        about = load_spec(one).about
        for other, why in (about.alike if about else {}).items():
            if other in views and (other, one) not in found:
                found[one, other] = why
    return found
