"""Table 7: image classification, five methods and the student alone on six pairs of networks for small images.

Claim of the paper: TAID is best where teacher and student differ least (ResNet56 → ResNet20), MLKD elsewhere.

    python paper_experiments/07_table7_cifar100.py --scale smoke           # a minute
    python paper_experiments/07_table7_cifar100.py --scale cpu --seeds 3   # see `make help`
    python paper_experiments/07_table7_cifar100.py --scale paper --seeds 1 # GPUs: docs/paper_scale.md
    python -m analysis table7

`table7_search`: the learning rate of every method and pair is chosen from one grid by its accuracy on validation
images, in short runs of seed 100, which is not tested. `table7`: the students of every seed on the test images; all
methods of a seed start from one student and see one stream of batches. The scale `paper` is CIFAR-100 by the field's
recipe, at its one learning rate.
"""

from functools import partial

from taid.studies import jobs, vision

main = partial(vision.evaluate, "table7")

if __name__ == "__main__":
    jobs.command(main, "Table 7: image classification, small images.", vision.SETTINGS["table7"], seeds=3)
