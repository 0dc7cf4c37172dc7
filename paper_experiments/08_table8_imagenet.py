"""Table 8: image classification, five methods and the student alone on ResNet34 → 18 and ResNet50 → MobileNet-V1.

Claim of the paper: TAID is best on the first pair, and second to MLKD on the other.

    python paper_experiments/08_table8_imagenet.py --scale smoke           # a minute
    python paper_experiments/08_table8_imagenet.py --scale cpu --seeds 3   # see `make help`
    python paper_experiments/08_table8_imagenet.py --scale paper --seeds 1 # GPUs: docs/paper_scale.md
    python -m analysis table8

As Table 7 (07_table7_cifar100.py), at the weights and temperature that the literature takes for ImageNet. The scale
`paper` is ImageNet by the field's recipe, with teachers of a hub.
"""

from functools import partial

from taid.studies import jobs, vision

main = partial(vision.evaluate, "table8")

if __name__ == "__main__":
    jobs.command(main, "Table 8: image classification, large images.", vision.SETTINGS["table8"], seeds=3)
