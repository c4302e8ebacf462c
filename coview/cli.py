"""coview COMMAND [--flag value …]: the one command line; `make COMMAND NAME=value` comes in here
too.

One table says what there is. A command's settings are light modules, so that its --help is instant;
what does the work is imported when it runs.
"""

import sys

from base.commands import Command, main

CACHED = ("VIEW", "DATA", "CACHE")
MACHINE = ("DEVICE", "GPUS", "CACHE")
TRAINED = ("VIEWS", "DATA", "LABELS", "VAL", "TEST", "METHOD", "SEEDS")
COMMANDS = (
    Command(
        "extract",
        "extract.config:ExtractConfig",
        "extract.command:command",
        ("VIEW", "VIEWS", "DATA", "WEIGHTS", "CLASSES", *MACHINE),
        "make extract VIEW=clip DATA=photos/",
    ),
    Command(
        "inspect",
        "report.config:InspectConfig",
        "report.inspect.command:command",
        ("VIEWS", "DATA", "LABELS", "TO", "CACHE"),
        "make inspect VIEWS=clip,dinov2 DATA=photos/",
    ),
    Command(
        "train",
        "coview.live:TrainingConfig",
        "coview.chain:train",
        (*TRAINED, "LIVE", "MODE", *MACHINE, "RUN"),
        "make train VIEWS=clip,dinov2 DATA=photos/",
    ),
    Command(
        "finetune",
        "train.finetune.config:FinetuneConfig",
        "train.finetune.command:command",
        (
            *("VIEW", "VIEWS", "DATA", "LABELS", "VAL", "TEST", "SEEDS", "MODE", "WEIGHTS"),
            *("DEVICE", "GPUS", "CACHE", "RUN"),
        ),
        "make finetune VIEW=clip DATA=photos/ LABELS=4",
    ),
    Command(
        "predict",
        "predict.config:PredictConfig",
        "predict.command:command",
        ("RUN", "MODEL", "IMAGES", "TO", "METHOD", "RISK", "WEIGHTS", "DEVICE", "CACHE"),
        "make predict RUN=demo IMAGES=photos/",
    ),
    Command(
        "export-model",
        "predict.config:ExportModelConfig",
        "predict.bundle.command:command",
        ("RUN", "TO", "METHOD", "CACHE"),
        "make export-model RUN=demo TO=model",
    ),
    Command(
        "sweep",
        "train.grid:SweepConfig",
        "train.command:command_sweep",
        (*TRAINED, "GRID", *MACHINE, "RUN"),
        "make sweep VIEWS=clip,dinov2 DATA=photos/ GRID='lr=1e-4,3e-4'",
    ),
    Command(
        "report",
        "report.config:ReportConfig",
        "report.command:command",
        ("RUN", "CACHE", "DEVICE"),
        "make report RUN=demo",
    ),
    Command(
        "compare",
        "report.config:CompareConfig",
        "report.compare:command",
        ("RUNS", "TO"),
        "make compare RUNS=demo,demo-2",
    ),
    Command(
        "suggest",
        "report.config:SuggestConfig",
        "report.suggest.command:command",
        ("VIEWS", "DATA", "N", "RUN", "TO", "CACHE", "DEVICE"),
        "make suggest VIEWS=clip,dinov2 DATA=photos/",
    ),
    Command(
        "views",
        "upkeep.config:ViewsConfig",
        "upkeep.list_views:command",
        ("DATA", "CACHE"),
        "make views",
    ),
    Command(
        "weights",
        "extract.config:ConvertConfig",
        "extract.models.convert:command",
        ("VIEW", "FROM"),
        "make weights VIEW=swav",
    ),
    Command(
        "status",
        "upkeep.config:StatusConfig",
        "upkeep.status:command",
        ("CACHE",),
        "make status",
    ),
    Command(
        "verify",
        "upkeep.config:VerifyConfig",
        "upkeep.verify:command",
        (*CACHED, "WEIGHTS", "DEVICE"),
        "make verify   or   make verify VIEW=clip DATA=photos/",
    ),
    Command(
        "repair",
        "upkeep.config:RepairConfig",
        "upkeep.repair:command",
        (*CACHED, "WEIGHTS", "DEVICE", "GPUS"),
        "make repair VIEW=clip DATA=photos/",
    ),
    Command(
        "import",
        "exchange.config:ImportConfig",
        "exchange.importer:command",
        ("VIEW", "FROM", "DATA", "CACHE"),
        "make import VIEW=mine FROM=embeddings.npz DATA=photos/",
    ),
    Command(
        "export",
        "exchange.config:ExportConfig",
        "exchange.export:command",
        ("VIEW", "DATA", "TO", "CACHE"),
        "make export VIEW=clip DATA=photos/ TO=clip.h5",
    ),
    Command(
        "push",
        "exchange.config:PushConfig",
        "exchange.remote.command:push",
        ("VIEW", "DATA", "TO", "CACHE"),
        "make push VIEW=clip DATA=photos/ TO=s3://bucket/views",
    ),
    Command(
        "pull",
        "exchange.config:PullConfig",
        "exchange.remote.command:pull",
        ("FROM", "VIEW", "DATA", "CACHE"),
        "make pull FROM=s3://bucket/views",
    ),
    Command("gc", "upkeep.config:GcConfig", "upkeep.gc:command", ("CACHE",), "make gc"),
    Command(
        "doctor",
        "upkeep.config:DoctorConfig",
        "upkeep.doctor:command",
        ("CACHE",),
        "make doctor",
    ),
)


def run() -> None:
    """The console script."""
    sys.exit(main("coview.cli:COMMANDS", sys.argv[1:]))


if __name__ == "__main__":
    run()
