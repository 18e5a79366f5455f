"""Make the data set: python -m freedoom_sounds OUT --seed 7 --train 100 --val 24 --test 48 --workers 2."""

import argparse
import sys
from pathlib import Path

from freedoom_sounds import generate
from freedoom_sounds.classes import CLASS_LISTS, NAME, SPLITS, EngineError, GenerationError


def main(arguments: list[str] | None = None) -> None:
    """Run the command; ends the process with a sentence where the set could not be made."""
    parser = argparse.ArgumentParser("python -m freedoom_sounds", description=sys.modules["freedoom_sounds"].__doc__)
    parser.add_argument("out", type=Path, help="folder for manifest.csv, dataset.json and clips/")
    parser.add_argument("--seed", type=int, default=7, help="the same seed gives the same clips (%(default)s)")
    for split, count in zip(SPLITS, (100, 24, 48), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help="clips of each class (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="engine processes; 0, the default: one for each core")
    parser.add_argument("--classes", default=NAME, choices=CLASS_LISTS, help="list of classes (%(default)s)")
    given = parser.parse_args(arguments)
    counts = {split: getattr(given, split) for split in SPLITS}
    try:
        manifest = generate(
            given.out, seed=given.seed, clips_per_class=counts, class_list=given.classes, workers=given.workers
        )
    except (EngineError, GenerationError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    print(f"{len(manifest)} clips in {given.out}/clips, listed in manifest.csv and described in dataset.json beside it")


if __name__ == "__main__":
    main()
