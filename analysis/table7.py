"""Table 7: `results/table7.md` and its figure."""

from analysis.images import ImagesPage

NOTE = (
    "The paper's baselines agree with the literature's tables (mdistiller's, CTKD's) but for three cells of Tables 7"
    " and 8, so that the rows of a column come from different training runs: KL, VGG13 → VGG8 is 72.98 there and 72.93"
    " in the paper; DKD, WRN-40-2 → WRN-16-2 is 76.23 there and 76.24 in the paper (the third is on the page of Table 8)."
)

PAGE = ImagesPage("table7", "CIFAR-100, 240 epochs", NOTE).page(
    "image classification, six pairs for small images"
)
