"""Labels of images, as texts that a model embeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mm.errors import OptionError

TEMPLATE = "a photo of a {}"
"""What a label is put into unless told otherwise (CLIP, arXiv:2103.00020, section 3.1.4)."""


def label_prompts(labels: Sequence[str], template: str = TEMPLATE) -> tuple[str, ...]:
    """Puts labels into a template.

    Args:
        labels: at least two, all of them different.
        template: a text with ``{}`` where the label stands.

    Raises:
        OptionError: there are fewer labels, one is empty or is there twice, or the template has no ``{}``.
    """
    labels = [labels] if isinstance(labels, str) else labels
    if "{}" not in template:
        raise OptionError(f"template {template!r} has no {{}}, which is where the label stands")
    if len(labels) < 2:
        given = f"only {labels[0]!r} is given" if labels else "none is given"
        raise OptionError(f"an image is told apart by at least two labels; {given}")
    if not all(label.strip() for label in labels):
        raise OptionError(f"label {[label.strip() for label in labels].index('') + 1} of {len(labels)} is empty")
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise OptionError(f"labels are there more than once: {', '.join(twice)}")
    return tuple(template.replace("{}", label) for label in labels)
