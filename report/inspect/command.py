"""make inspect VIEWS=clip,dinov2 DATA=photos/ [LABELS=4] [TO=page.html]
(coview inspect --views clip,dinov2 --data photos/)

Before training: dead dimensions, lengths, images that stand on both sides of the border between
training, validation and test, what the nearest neighbours of each view know, how alike the views
are, and whether two views err on different images. Prints a summary and writes one page.
"""

import json
from typing import Any

from base.commands import rendered
from report.config import InspectConfig


def command(config: InspectConfig, found: dict[str, Any]) -> None:
    """make inspect."""
    from report.inspect.run import run
    from report.inspect.text import text_of

    told = run(config)
    print(f"{text_of(told)}\n\n{told['page']}")
    next_step = rendered(told["next"])
    print(f"Only a run says whether co-training helps: {next_step}", flush=True)
    found |= json.loads(json.dumps(told), parse_constant=lambda _: None)  # JSON knows no NaN
