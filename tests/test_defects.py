"""Known defects of the reference implementations: every one is ruled out by a test that is marked with its number."""

import re
from pathlib import Path

# 1 to 16: devrimcavusoglu/std, the reproduction of STD; 17 to 25: lkhl/tiny-transformers and its fork in
# sunshangquan/logit-standardization-KD; 26 to 28: kimyunoo/4782_final, the reproduction of DeiT; 29 to 32:
# roymiles/vkd; 33: naver-ai/vidt
DEFECTS = {
    1: "teachers' entropies are summed over the batch, so that one teacher gets all the weight",
    2: "the sign of the confidence favours the less sure teacher",
    3: "0 log 0 is NaN for a sure teacher",
    4: "soft distillation divides a list, and fails",
    5: "all teachers' tokens get the same update",
    6: "every block allocates a distillation branch, one or two are used",
    7: "teachers get the student's normalisation",
    8: "MINE counts chunks for samples, draws with replacement, is not saved and not stabilised",
    9: "the moving average is never evaluated nor saved",
    10: "the learning rate is one epoch late",
    11: "a checkpoint is written in place",
    12: "a checkpoint is loaded by running code from it",
    13: "the evaluation overweights the last batch",
    14: "cutmix without mixup fails, and a teacher's name counts as a list of teachers",
    15: "Python's random is not seeded",
    16: "distillation tokens are weight-decayed",
    17: "the teacher switches to batch statistics with the student, and its running ones move",
    18: "with two distillation losses on, that of the logits is dropped",
    19: "logit distillation works for DeiT only, other students crash",
    20: "the divergence is divided by images times classes",
    21: "what trains beside the backbone is not saved",
    22: "cutmix uses a name that numpy has dropped",
    23: "weights that do not fit are loaded as far as they do",
    24: "the flag of logit standardization does the opposite in one of the methods",
    25: "best and last epoch are mixed in one table, and the config that ran is not kept",
    26: "the teacher's head is random and was never trained",
    27: "the mode does not reach the model, and two modes crash",
    28: "the first epoch has learning rate 0, and training accuracy is shown as half of what it is",
    29: "the student is called past its wrapper, so that processes drift apart",
    30: "the seed, the rate and its scaling are read and not used",
    31: "one of two loss weights at 0 is an error",
    32: "certificates of downloads are not verified any more after an import",
    33: "a detector sees how far an image is padded, so that what it finds depends on the batch",
}


def test_every_defect_has_its_test():
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    marked = {int(number) for number in re.findall(r"^@pytest\.mark\.defect\((\d+)\)", sources, re.M)}
    assert marked == set(DEFECTS)
