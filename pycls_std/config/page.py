"""Every option of a run on one page: its default, its unit, what turns it off, and its allowed values.

A tuple lists the allowed values, the default first. A method's private options stand in its own file as `OPTIONS`
(pycls_std/trainers/) and become a section of the method's name.
"""

import math

from yacs.config import CfgNode

cfg = CfgNode()

# Name of the run in logs and tables; "" = the config file's name without .yaml.
cfg.NAME = ""
# Method, by its name in pycls_std/trainers/.
cfg.TRAINER = "baseline"
# Folder of the run record; "" = runs/NAME/seed<SEED>.
cfg.OUT_DIR = ""
# Seed of weights, dropout and, unless DATA.SEED has its own, the images. Every epoch is reseeded from (SEED, epoch).
cfg.SEED = 0
# Where to compute; auto = cuda where there is one.
cfg.DEVICE = ("auto", "cpu", "cuda")
# Arithmetic of the forward pass (autocast); weights stay fp32.
cfg.PRECISION = ("fp32", "bf16", "fp16")
# Iterations between two progress lines; 0 = one line an epoch.
cfg.LOG_PERIOD = 50

cfg.MODEL = CfgNode()
# Student: a name of pycls_std/models/ (mixer_s4, mixer_nano4, resmlp_s24, resnet56, ...) or any timm model.
cfg.MODEL.NAME = "mixer_nano4"
# Keyword arguments of the model's constructor (patch_size, embed_dim, num_blocks, ...); {} = its own defaults, null
# drops those of a _BASE_.
cfg.MODEL.ARGS = CfgNode(new_allowed=True)
# Classes; 0 = as many as the data has, another number must agree with the data.
cfg.MODEL.NUM_CLASSES = 0
# Stochastic depth rate of the last block; 0 = off.
cfg.MODEL.DROP_PATH = 0.0
# Epsilon of every LayerNorm of the backbone; 0 = the model's own (timm's mixers 1e-6, the STD reference 1e-5).
cfg.MODEL.NORM_EPS = 0.0
# Weights that training starts from, in the forms of DISTILLATION.TEACHER_WEIGHTS; "" = random. A classifier of another
# number of classes stays random, all else must fit. DATA.NORMALIZATION should be what they were trained with.
cfg.MODEL.WEIGHTS = ""

cfg.DATA = CfgNode()
# Dataset, by its name in pycls_std/datasets/.
cfg.DATA.NAME = "digits"
# Folder the dataset lies in, or is downloaded to.
cfg.DATA.ROOT = "data"
# Seed of order, augmentation and mixing; -1 = SEED. With one for several SEEDs these see the same views, and can share
# what a teacher said of them.
cfg.DATA.SEED = -1
# Side of the square input images, pixels.
cfg.DATA.IMAGE_SIZE = 32
# Channel mean and deviation of the student's input; "" = the dataset's own, or imagenet, half, cifar10,
# cifar100, tiny_imagenet, digits.
cfg.DATA.NORMALIZATION = ""
# At test, images are resized to IMAGE_SIZE / CROP_RATIO and centre-cropped; 1 = resized to IMAGE_SIZE, no crop.
cfg.DATA.CROP_RATIO = 1.0
# Where views are made: in batches on the device, from images held in memory; or one by one by worker processes. auto =
# memory for images that take at most 2 GiB at 4 bytes a pixel.
cfg.DATA.LOADER = ("auto", "memory", "workers")
# Processes that read images for each training process; 0 = that one reads.
cfg.DATA.NUM_WORKERS = 2

cfg.AUG = CfgNode()
# Training crop: zero-padded random crop (small images), random resized crop (large images), plain resize.
cfg.AUG.CROP = ("pad", "resized", "none")
# Padding of the `pad` crop, pixels; 0 = no shift.
cfg.AUG.CROP_PADDING = 4
# Least area of the `resized` crop, as a share of the image.
cfg.AUG.CROP_SCALE = 0.08
# Probability of a horizontal flip; 0 = off.
cfg.AUG.FLIP = 0.5
# RandAugment in timm's notation, e.g. rand-m9-mstd0.5-inc1; "" = off.
cfg.AUG.RAND_AUGMENT = ""
# Strength of colour jitter (brightness, contrast, saturation); 0 = off.
cfg.AUG.COLOR_JITTER = 0.0
# Probability that a rectangle is erased with noise; 0 = off.
cfg.AUG.ERASING = 0.0
# Beta parameter of mixup; 0 = off.
cfg.AUG.MIXUP = 0.0
# Beta parameter of cutmix; 0 = off.
cfg.AUG.CUTMIX = 0.0
# Probability that a batch is mixed at all, where MIXUP or CUTMIX is on.
cfg.AUG.MIX_PROB = 1.0
# Probability of cutmix, where both are on.
cfg.AUG.MIX_SWITCH = 0.5
# Share of the target spread over all classes; 0 = off.
cfg.AUG.LABEL_SMOOTHING = 0.0
# Repeated augmentation: views of an image within an epoch, whose length stays; 1 = off.
cfg.AUG.REPEATS = 1

cfg.DISTILLATION = CfgNode()
# Teachers, by model name; [] = none. The TEACHER_* lists run parallel to it; [] there = each entry's default.
cfg.DISTILLATION.TEACHERS = []
# One each: a checkpoint | https://...#sha256=<hex> | published:cifar100_resnet56 | timm (the name holds the tag).
cfg.DISTILLATION.TEACHER_WEIGHTS = []
# Input normalisation by name; "" = what the weights were trained with, or the dataset's own where that is not known.
cfg.DISTILLATION.TEACHER_NORMS = []
# Input side, pixels; 0 = what the weights were trained at, or the student's where that is not known.
cfg.DISTILLATION.TEACHER_SIZES = []
# Least top-1 accuracy (%) of every teacher on the test split; below it the run refuses. 0 = off, -1 = a quarter of the
# way from chance to 100.
cfg.DISTILLATION.TEACHER_MIN_ACC = -1.0
# Arithmetic of the teachers, whose weights are converted to it; auto = PRECISION's, and fp32 for a teacher that then
# names more than 1 % of 1000 test images otherwise.
cfg.DISTILLATION.TEACHER_PRECISION = ("auto", "fp32", "bf16", "fp16")
# Fold the teachers' batch norms into the convolutions before them: the same function but for rounding.
cfg.DISTILLATION.TEACHER_FOLD = True
# Statistics of the teachers' batch norms: those they were trained with; or those of each batch, as in references that
# let the teacher wake up with the student. Nothing is folded then, and each process has its own.
cfg.DISTILLATION.TEACHER_BN = ("eval", "batch")
# Folder that keeps what the teachers say of every training view, for later runs that see the same views (DATA.SEED) of
# images in memory; "" = off.
cfg.DISTILLATION.CACHE = ""
# Arithmetic of what is kept; with fp32, all of it, and TRAIN.COMPILE off a run ends as without the cache, bit for bit.
cfg.DISTILLATION.CACHE_PRECISION = ("fp32", "fp16")
# Logits of each view that are kept, the largest ones, with the sum of the rest; 0 = all.
cfg.DISTILLATION.CACHE_TOP = 0
# Teacher's label (argmax), its distribution, or that in two parts (DKD). DeiT's modes soft and hard say it themselves.
cfg.DISTILLATION.TYPE = ("hard", "soft", "decoupled")
# Share of the distillation loss in the objective of std, and of deit's modes soft, hard and both; the rest is the class
# loss. 0 = no distillation. The trainer kd has a weight for each, in its own section.
cfg.DISTILLATION.ALPHA = 0.5
# Temperature of soft and decoupled distillation; the base temperature of standardized logits.
cfg.DISTILLATION.TEMPERATURE = 1.0
# Compare logits of mean 0 and deviation 1 over the classes, the student's and the teacher's (logit standardization). A
# head that would start at zero, as a mixer's, starts small and random then.
cfg.DISTILLATION.LOGIT_STANDARD = False
# Factor of the distillation loss while LOGIT_STANDARD is on.
cfg.DISTILLATION.EXTRA_WEIGHT = 1.0
# Decoupled distillation: weight of the target class against all others.
cfg.DISTILLATION.DKD_ALPHA = 1.0
# Decoupled distillation: weight of the other classes among themselves.
cfg.DISTILLATION.DKD_BETA = 8.0
# Weight of each teacher for each image: surer teachers more, less sure teachers more (as printed), all alike.
cfg.DISTILLATION.WEIGHTING = ("confidence", "entropy", "uniform")

cfg.MINE = CfgNode()
# Images of one mutual-information step (distinct, unmixed); 0 = MINE off, otherwise at least 2.
cfg.MINE.SAMPLES = 0
# How often such a step is taken: at the end of each epoch, or after every iteration.
cfg.MINE.PERIOD = ("epoch", "step")
# Learning rate of the critic, which ascends.
cfg.MINE.CRITIC_LR = 0.01
# Learning rate of the student, which descends; 0 = the estimate is only logged.
cfg.MINE.STUDENT_LR = 0.01
# Momentum of both; 0 = off.
cfg.MINE.MOMENTUM = 0.0
# Hidden units of the critic.
cfg.MINE.WIDTH = 512
# Linear layers of the critic; 1 = no hidden layer.
cfg.MINE.DEPTH = 3

cfg.OPTIM = CfgNode()
# sgd (with Nesterov momentum), momentum (without), adamw, or another first-order optimizer of timm.optim.
cfg.OPTIM.NAME = "adamw"
# Peak learning rate.
cfg.OPTIM.BASE_LR = 5e-4
# BASE_LR is multiplied by TRAIN.BATCH_SIZE / LR_BATCH; 0 = used as it is.
cfg.OPTIM.LR_BATCH = 0
# Decoupled weight decay of adamw, L2 of sgd; 0 = off. It spares parameters of one dimension (biases, norms) and tokens.
cfg.OPTIM.WEIGHT_DECAY = 0.05
# Momentum, above 0 for `sgd`, whose Nesterov form needs it; 0 = off for `momentum`.
cfg.OPTIM.MOMENTUM = 0.9
# Largest gradient norm of the main objective; 0 = no clipping. MINE's steps are not clipped.
cfg.OPTIM.CLIP_NORM = 0.0
# Epochs of the run.
cfg.OPTIM.MAX_EPOCH = 300
# Shape of the learning rate after the warm-up; the shape is counted from the first epoch on.
cfg.OPTIM.SCHEDULE = ("cosine", "step", "constant")
# Epochs of linear warm-up from WARMUP_LR; 0 = off.
cfg.OPTIM.WARMUP_EPOCHS = 0.0
# Learning rate at the start of the warm-up.
cfg.OPTIM.WARMUP_LR = 1e-6
# Learning rate at the end of `cosine`.
cfg.OPTIM.MIN_LR = 0.0
# Epochs at which `step` multiplies the learning rate by GAMMA; [] = never.
cfg.OPTIM.STEPS = []
# Factor of `step`.
cfg.OPTIM.GAMMA = 0.1

cfg.TRAIN = CfgNode()
# Images in a training batch, of all processes together; an incomplete last batch is dropped.
cfg.TRAIN.BATCH_SIZE = 128
# Decay of the moving average of the weights, per iteration; 0 = off.
cfg.TRAIN.EMA_DECAY = 0.0
# Let the average start short and grow to EMA_DECAY, which short runs need.
cfg.TRAIN.EMA_WARMUP = False
# Compile the forward pass of a training step, which takes a minute or two; graphs = record it as CUDA
# graphs, too; auto = on for CUDA and runs of at least 5000 iterations, otherwise off.
cfg.TRAIN.COMPILE = ("auto", "off", "on", "graphs")
# Newest checkpoints that are kept to continue from: last.pt, last-1.pt, ...; 1 = last.pt alone, and no way back from a
# damaged one.
cfg.TRAIN.KEEP = 2

cfg.TEST = CfgNode()
# Images in a test batch, of each process.
cfg.TEST.BATCH_SIZE = 200
# Epochs between evaluations; the last epoch is always evaluated.
cfg.TEST.PERIOD = 1
# Checkpoint that --mode test scores.
cfg.TEST.WEIGHTS = ""
# Score the moving average in that checkpoint instead of the weights.
cfg.TEST.EMA = False
# Prediction that counts as the result: avg (class and distillation heads), cls, dist; "" = the method's own.
cfg.TEST.PREDICTION = ""

cfg.TIME = CfgNode()
# Iterations of --mode time that are not counted, at first.
cfg.TIME.WARMUP = 3
# Iterations of --mode time that are counted.
cfg.TIME.STEPS = 10

cfg.PUBLISHED = CfgNode()
# Published top-1 accuracy that this config reproduces or stands in for, percent; -1 = none is published.
cfg.PUBLISHED.TOP1 = -1.0
# Published top-5 accuracy, percent; -1 = none is published.
cfg.PUBLISHED.TOP5 = -1.0
# Where they are published; "" = nowhere.
cfg.PUBLISHED.SOURCE = ""

# Type of the entries of the lists that are empty by default.
ENTRY_TYPES = {
    "DISTILLATION.TEACHERS": str,
    "DISTILLATION.TEACHER_WEIGHTS": str,
    "DISTILLATION.TEACHER_NORMS": str,
    "DISTILLATION.TEACHER_SIZES": int,
    "OPTIM.STEPS": float,
}
# Options that hold paths; a leading ~ is the home folder.
PATHS = ("OUT_DIR", "MODEL.WEIGHTS", "DATA.ROOT", "DISTILLATION.CACHE", "TEST.WEIGHTS", "DISTILLATION.TEACHER_WEIGHTS")
INFINITY = math.inf
# Least and greatest allowed value.
RANGES = {
    "SEED": (0, 2**32 - 1),
    "LOG_PERIOD": (0, INFINITY),
    "MODEL.NUM_CLASSES": (0, INFINITY),
    "MODEL.DROP_PATH": (0, 1),
    "MODEL.NORM_EPS": (0, 1),
    "DATA.SEED": (-1, 2**32 - 1),
    "DATA.IMAGE_SIZE": (1, INFINITY),
    "DATA.CROP_RATIO": (0.01, 1),
    "DATA.NUM_WORKERS": (0, INFINITY),
    "AUG.CROP_PADDING": (0, INFINITY),
    "AUG.CROP_SCALE": (0.001, 1),
    "AUG.FLIP": (0, 1),
    "AUG.COLOR_JITTER": (0, INFINITY),
    "AUG.ERASING": (0, 1),
    "AUG.MIXUP": (0, INFINITY),
    "AUG.CUTMIX": (0, INFINITY),
    "AUG.MIX_PROB": (0, 1),
    "AUG.MIX_SWITCH": (0, 1),
    "AUG.LABEL_SMOOTHING": (0, 1),
    "AUG.REPEATS": (1, INFINITY),
    "DISTILLATION.TEACHER_MIN_ACC": (-1, 100),
    "DISTILLATION.CACHE_TOP": (0, 65535),
    "DISTILLATION.ALPHA": (0, 1),
    "DISTILLATION.TEMPERATURE": (1e-6, INFINITY),
    "DISTILLATION.EXTRA_WEIGHT": (0, INFINITY),
    "DISTILLATION.DKD_ALPHA": (0, INFINITY),
    "DISTILLATION.DKD_BETA": (0, INFINITY),
    "MINE.SAMPLES": (0, INFINITY),
    "MINE.CRITIC_LR": (0, INFINITY),
    "MINE.STUDENT_LR": (0, INFINITY),
    "MINE.MOMENTUM": (0, 1),
    "MINE.WIDTH": (1, INFINITY),
    "MINE.DEPTH": (1, INFINITY),
    "OPTIM.BASE_LR": (0, INFINITY),
    "OPTIM.LR_BATCH": (0, INFINITY),
    "OPTIM.WEIGHT_DECAY": (0, INFINITY),
    "OPTIM.MOMENTUM": (0, 1),
    "OPTIM.CLIP_NORM": (0, INFINITY),
    "OPTIM.MAX_EPOCH": (1, INFINITY),
    "OPTIM.WARMUP_EPOCHS": (0, INFINITY),
    "OPTIM.WARMUP_LR": (0, INFINITY),
    "OPTIM.MIN_LR": (0, INFINITY),
    "OPTIM.GAMMA": (0, 1),
    "TRAIN.BATCH_SIZE": (1, INFINITY),
    "TRAIN.EMA_DECAY": (0, 0.9999999),
    "TRAIN.KEEP": (1, INFINITY),
    "TEST.BATCH_SIZE": (1, INFINITY),
    "TEST.PERIOD": (1, INFINITY),
    "TIME.WARMUP": (0, INFINITY),
    "TIME.STEPS": (1, INFINITY),
}
