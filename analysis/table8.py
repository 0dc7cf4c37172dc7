"""Table 8: `results/table8.md` and its figure."""

from analysis.images import ImagesPage

NOTE = (
    "Of the three cells in which the paper's baselines differ from the literature's one is here: CTKD, ResNet34 →"
    " ResNet18 is 71.32 there, beside a KL of 70.83, and 71.38 in the paper, beside a KL of 71.03: the rows of this"
    " column come from different training runs (the other two are on the page of Table 7)."
)

PAGE = ImagesPage("table8", "ImageNet, 100 epochs", NOTE).page(
    "image classification, two pairs for large images"
)
