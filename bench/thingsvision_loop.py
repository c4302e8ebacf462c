"""A published extractor's own loop, in its own environment, where nothing of ours is installed:

    uv venv peer && uv pip install --python peer/bin/python thingsvision
    peer/bin/python bench/thingsvision_loop.py vit_base_patch16_224 photos/

Prints the seconds of its extraction in JSON.
"""

import json
import resource
import sys
import time

from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset

BATCH = 64
name, folder = sys.argv[1:]
extractor = get_extractor(model_name=name, source="timm", device="cpu", pretrained=False)
modules = [name for name, _ in extractor.model.named_modules() if name]
last = "fc_norm" if "fc_norm" in modules else "global_pool"
data = ImageDataset(
    root=folder,
    out_path=f"{folder}/../thingsvision",
    backend=extractor.get_backend(),
    transforms=extractor.get_transformations(),
)
begun = time.perf_counter()
batches = DataLoader(dataset=data, batch_size=BATCH, backend=extractor.get_backend())
extractor.extract_features(batches=batches, module_name=last, flatten_acts=True)
seconds = time.perf_counter() - begun
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"seconds": seconds, "GB": peak}))
