"""Every option of a run on one page: its default, its unit, what turns it off, and its properties.

A tuple lists the allowed values, the default first; see `core/option.py` for the rest. The private options of a term
or a trainer are declared in its own file as `OPTIONS` (pycls_std/terms/, pycls_std/trainers/), and form a section of
its name; the published scores of a table, PUBLISHED.TOP1 and so on, follow from the metrics (pycls_std/metrics/).
"""

from pycls_std.core.option import Option, neutral

PAGE = {
    # Name of the run in logs and tables; "" = the config file's name without .yaml.
    "NAME": Option("", on_resume="free", recipe=False),
    # Method, by its name in pycls_std/trainers/: a preset of the weights of loss terms (pycls_std/terms/). Any other
    # term is added by setting its weight.
    "TRAINER": Option("baseline", registry="TRAINERS", student=True),
    # Folder of the run record; "" = runs/NAME/seed<SEED>.
    "OUT_DIR": neutral("", path=True),
    # Seed of weight initialization, dropout and, unless DATA.SEED is set, of data order and augmentation. Every epoch
    # is reseeded from (SEED, epoch).
    "SEED": Option(0, least=0, greatest=2**32 - 1, rows=False),
    # Device; auto = cuda if available.
    "DEVICE": neutral(("auto", "cpu", "cuda")),
    # Precision of the forward pass (autocast); weights stay fp32.
    "PRECISION": Option(("fp32", "bf16", "fp16")),
    # On CUDA, use TF32 (inputs rounded to 10 bits of mantissa) for fp32 convolutions and matrix products, which is
    # faster; false = full fp32 for both, so that fp32 means the same on every device. Images are always resized in full
    # fp32; VkD's projection is not exempt, its columns are then orthonormal to 1e-3 only.
    "CUDA.TF32": Option(False, when="DEVICE!=cpu", recipe=False),
    # On CUDA, use deterministic kernels, which bitwise exact resume needs there; they are slower, and an operation
    # without one raises an error. Results on a CPU are deterministic anyway.
    "CUDA.DETERMINISTIC": Option(False, when="DEVICE!=cpu", rows=False, recipe=False),
    # On CUDA, how the token mixing MLPs of an MLP-Mixer student are computed: plain = by torch's layers; fused = by
    # Triton kernels that write no hidden units to memory, with the same result up to rounding; auto = time both on a
    # block, forward and backward, when a run starts, and take the faster one, which a resumed run keeps; without the
    # kernels, such as without Triton, auto is plain, which is logged.
    "CUDA.TOKEN_MIXING": Option(("plain", "fused", "auto"), when="DEVICE!=cpu", recipe=False),
    # Iterations between two progress lines; 0 = one line an epoch.
    "LOG_PERIOD": neutral(50, least=0),
    # Task, which defines what a label is, by its name in pycls_std/tasks/.
    "TASK.NAME": Option("classification", registry="TASKS", student=True),
    # Weight of the task's own loss, the one on the labels; 0 = off.
    "TASK.WEIGHT": Option(1.0, least=0, student=True),
    # Student: a name of pycls_std/models/ (mixer_s4, resmlp_s24, resnet56, wrn_40_2, deit_ti_conv, ...) or any timm
    # model.
    "MODEL.NAME": Option("mixer_nano4", student=True),
    # Keyword arguments of the model's constructor (patch_size, embed_dim, num_blocks, ...); {} = its own defaults, null
    # drops those of a _BASE_. image_token, for a DeiT with two heads: true = the distillation token is the mean of the
    # image's patch embeddings, as in a deit_*_conv by default; false = it is learned.
    "MODEL.ARGS": Option({}, student=True),
    # Number of classes; 0 = that of the data, with which any other number must agree.
    "MODEL.NUM_CLASSES": neutral(0, least=0, greatest=1_000_000),
    # Stochastic depth rate of the last block, or in Mixer, ResMLP and gMLP of every block; 0 = off.
    "MODEL.DROP_PATH": Option(0.0, least=0, greatest=1, student=True),
    # Epsilon of every LayerNorm of the backbone; 0 = the model's own (timm's mixers 1e-6, the STD reference 1e-5).
    "MODEL.NORM_EPS": Option(0.0, least=0, greatest=1, student=True),
    # Initialization of the linear layers and convolutions of the backbone: "" = the model's own (a classifier of zeros
    # in timm's mixers); torch = PyTorch's default, uniform within 1 / sqrt(fan-in).
    "MODEL.INIT": Option(("", "torch"), student=True),
    # Initial (pretrained) weights, in the forms of DISTILLATION.TEACHER_WEIGHTS; "" = random. A classifier with another
    # number of classes stays random, all else must fit. A vidt_swin_* can also start from a Swin classifier:
    # timm:swin_tiny_patch4_window7_224, or a file. DATA.NORMALIZATION should be what they were trained with.
    "MODEL.WEIGHTS": Option("", path=True, student=True),
    # Frozen parts of the backbone: names of its modules or parameters, such as blocks.0 or patch_embed, with the
    # wildcards * and ?; [] = none. Their batch norms still update their running statistics.
    "MODEL.FREEZE": Option([], of=str),
    # Dataset, by its name in pycls_std/datasets/.
    "DATA.NAME": Option("digits", registry="DATASETS", student=True),
    # Folder of the dataset, or to download it to. The name of a folder of images is the name of the dataset.
    "DATA.ROOT": neutral("data", path=True),
    # Share of the training images of each class that is held out for validation, the same ones for every seed: the best
    # epoch is selected on them, and teachers are checked on them; 0 = off, both use the test split.
    "DATA.VAL_FRACTION": Option(0.0, least=0, greatest=0.9, column="held out"),
    # Training images of each class, the first in the dataset's order that are not held out; 0 = all. The test split is
    # not reduced.
    "DATA.PER_CLASS": Option(0, least=0, column="images a class"),
    # Training images, the first in the dataset's order that are not held out; 0 = all. The test split is not reduced.
    "DATA.IMAGES": Option(0, least=0, column="images"),
    # Seed of shuffling, augmentation and mixing; -1 = SEED. Runs with the same DATA.SEED but different SEEDs see the
    # same views, and can share cached teacher outputs.
    "DATA.SEED": Option(-1, least=-1, greatest=2**32 - 1, recipe=False),
    # Side of the square input images, pixels; in detection the shortest side at test, from which other sizes follow.
    "DATA.IMAGE_SIZE": Option(32, least=1, greatest=4096, student=True),
    # Channel mean and standard deviation of the student's input; "" = the dataset's own, or imagenet, half, cifar10,
    # cifar100, tiny_imagenet, digits.
    "DATA.NORMALIZATION": Option("", student=True),
    # At test, the shorter side (FIT squash: both) is resized to IMAGE_SIZE / CROP_RATIO and the centre cut out; 1 = a
    # square image is resized to IMAGE_SIZE and not cropped.
    "DATA.CROP_RATIO": Option(1.0, least=0.01, greatest=1, student=True),
    # At test, and in training unless AUG.CROP is `resized`, how an image becomes square: by resizing its shorter side
    # and cutting out the centre (crop), or by resizing both sides, which distorts it (squash).
    "DATA.FIT": Option(("crop", "squash"), student=True),
    # Filter that test images are resized with; like Pillow's, both are antialiased.
    "DATA.INTERPOLATION": Option(("bicubic", "bilinear"), student=True),
    # Where images are augmented: in batches on the device, from images held in memory; or one by one by worker
    # processes. auto = memory in classification for images that take at most 2 GiB at 4 bytes a pixel, and, with
    # AUG.CROP resized, are of one size.
    "DATA.LOADER": Option(("auto", "memory", "workers"), recipe=False),
    # DataLoader workers of each training process; 0 = that process reads the images.
    "DATA.NUM_WORKERS": neutral(2, least=0, greatest=1024),
    # Training crop: pad = zero-padded random crop (small images), resized = random resized crop (large images), none =
    # plain resize.
    "AUG.CROP": Option(("pad", "resized", "none")),
    # Padding of the `pad` crop, pixels; 0 = no shift.
    "AUG.CROP_PADDING": Option(4, least=0, greatest=4096, when="AUG.CROP=pad"),
    # Least area of the `resized` crop, as a share of the image.
    "AUG.CROP_SCALE": Option(0.08, least=0.001, greatest=1, when="AUG.CROP=resized"),
    # Filter that training images or their crops are resized with; RandAugment always uses a bicubic one.
    "AUG.INTERPOLATION": Option(("bicubic", "bilinear")),
    # Probability of a horizontal flip; 0 = off.
    "AUG.FLIP": Option(0.5, least=0, greatest=1),
    # RandAugment in timm's notation, e.g. rand-m9-mstd0.5-inc1; "" = off.
    "AUG.RAND_AUGMENT": Option(""),
    # 3-Augment: each image is made grey, solarized or blurred, after RandAugment and before colour jitter.
    "AUG.THREE_AUGMENT": Option(False),
    # Strength of colour jitter (brightness, contrast, saturation); 0 = off.
    "AUG.COLOR_JITTER": Option(0.0, least=0),
    # Probability of random erasing (a rectangle of noise); 0 = off.
    "AUG.ERASING": Option(0.0, least=0, greatest=1),
    # Beta parameter of mixup; 0 = off.
    "AUG.MIXUP": Option(0.0, least=0),
    # Beta parameter of cutmix; 0 = off.
    "AUG.CUTMIX": Option(0.0, least=0),
    # Probability that a batch is mixed at all, where MIXUP or CUTMIX is on.
    "AUG.MIX_PROB": Option(1.0, least=0, greatest=1, when="AUG.MIXUP or AUG.CUTMIX"),
    # Probability of cutmix, where both are on.
    "AUG.MIX_SWITCH": Option(0.5, least=0, greatest=1, when="AUG.MIXUP and AUG.CUTMIX"),
    # Share of the target spread over all classes; 0 = off.
    "AUG.LABEL_SMOOTHING": Option(0.0, least=0, greatest=1),
    # Repeated augmentation: views of an image within an epoch, whose length does not change; 1 = off.
    "AUG.REPEATS": Option(1, least=1, greatest=1000),
    # Teachers, by model name; [] = none. The TEACHER_* lists have an entry for each of them; [] there = all defaults,
    # which TEACHER_WEIGHTS do not have.
    "DISTILLATION.TEACHERS": Option([], of=str),
    # One for each teacher: a checkpoint or a file of weights, safetensors too | https://...#sha256=<hex> | timm (the
    # name holds the tag) | timm:<name> of another model | hf-hub:<owner>/<name> of timm's models |
    # published:cifar100_resnet56.
    "DISTILLATION.TEACHER_WEIGHTS": Option([], of=str, path=True),
    # Input normalisation by name; "" = what the weights were trained with, or the dataset's own where that is not
    # known.
    "DISTILLATION.TEACHER_NORMS": Option([], of=str),
    # Input side, pixels; 0 = what the weights were trained at, or the student's where that is not known. [] in
    # detection, where all see the same images.
    "DISTILLATION.TEACHER_SIZES": Option([], of=int, least=0, greatest=4096),
    # Keyword arguments of each teacher's constructor, [{taps: before_relu}, {}]; {} = none. They are as in MODEL.ARGS,
    # and norm_eps, as MODEL.NORM_EPS; those that a checkpoint was trained with apply unless they are given here.
    "DISTILLATION.TEACHER_ARGS": Option([], of=dict),
    # Prediction that each teacher provides, if it is a student trained here with several heads: avg, cls, dist; "" =
    # the one that counted in its run (TEST.PREDICTION).
    "DISTILLATION.TEACHER_PREDICTIONS": Option([], of=str),
    # Minimum result of every teacher (top-1 accuracy or AP, %) on the held-out images, or without DATA.VAL_FRACTION on
    # the test split; below it, the run stops with an error. 0 = off, -1 = the task's default (classification: a quarter
    # of the way from chance to 100; detection: 5).
    "DISTILLATION.TEACHER_MIN_ACC": neutral(-1.0, least=-1, greatest=100),
    # Precision of the teachers, whose weights are converted to it; auto = PRECISION, but fp32 for a teacher whose
    # predictions would then differ on more than 1 % of 1000 test images, or whose features by more than 5 %.
    "DISTILLATION.TEACHER_PRECISION": Option(("auto", "fp32", "bf16", "fp16"), recipe=False),
    # Fold the teachers' batch norms into the convolutions before them: the same function up to rounding.
    "DISTILLATION.TEACHER_FOLD": Option(True, recipe=False),
    # Statistics of the teachers' batch norms: eval = the running ones of their training; batch = those of each batch in
    # each process, as in reference code that leaves the teacher in training mode; nothing is folded then.
    "DISTILLATION.TEACHER_BN": Option(("eval", "batch")),
    # Folder in which the teachers' outputs for every training view are cached, for later runs that see the same views
    # (DATA.SEED) of images in memory; with OFFLINE, those for every training image. "" = off.
    "DISTILLATION.CACHE": neutral("", path=True),
    # Run the teachers on the plain training images only, once before training: their outputs are stored in CACHE, and
    # features are cropped and flipped with the image, but do not follow other augmentation, such as RandAugment.
    # False = run them on every view.
    "DISTILLATION.OFFLINE": Option(False, column="offline"),
    # Precision of cached outputs; with fp32, CACHE_TOP 0, TRAIN.COMPILE off and, on a GPU, CUDA.DETERMINISTIC, a run
    # ends as without the cache, bit for bit.
    "DISTILLATION.CACHE_PRECISION": Option(("fp32", "fp16")),
    # Number of logits of each view that are cached: the largest ones, with the total probability of the rest; 0 = all.
    "DISTILLATION.CACHE_TOP": Option(0, least=0, greatest=65535),
    # Form of logit distillation, by its name in pycls_std/losses/, from the teacher's predicted label (hard), or its
    # distribution: as it is (soft), split into target and other classes (decoupled, which is DKD; nkd), raised to a
    # power (ttm, wttm), at a learned temperature (ctkd), with an enhanced target class (ofa), or by its correlations
    # over classes and images (dist).
    "DISTILLATION.TYPE": Option("hard", registry="LOGIT_LOSSES", column="form"),
    # Temperature of soft, decoupled, nkd and dist; the base temperature of standardized logits.
    "DISTILLATION.TEMPERATURE": Option(1.0, least=1e-6, when="DISTILLATION.TYPE!=hard,ttm,wttm,ctkd,ofa"),
    # Logit standardization: scale the student's and the teacher's logits to mean 0 and standard deviation 1 over the
    # classes. A head that would be initialized to zero, as a mixer's, is then initialized to small random weights.
    "DISTILLATION.LOGIT_STANDARD": Option(False, column="standardized"),
    # Factor of the distillation loss while LOGIT_STANDARD is on.
    "DISTILLATION.EXTRA_WEIGHT": Option(1.0, least=0, when="DISTILLATION.LOGIT_STANDARD"),
    # decoupled: weight of the target class against all others (TCKD).
    "DISTILLATION.DKD_ALPHA": Option(1.0, least=0, when="DISTILLATION.TYPE!=hard,soft,dist,nkd,ttm,wttm,ctkd,ofa"),
    # decoupled: weight of the other classes among themselves (NCKD).
    "DISTILLATION.DKD_BETA": Option(8.0, least=0, when="DISTILLATION.TYPE!=hard,soft,dist,nkd,ttm,wttm,ctkd,ofa"),
    # dist: weight of the correlation over the classes of each image.
    "DISTILLATION.DIST_BETA": Option(1.0, least=0, when="DISTILLATION.TYPE=dist"),
    # dist: weight of the correlation over the images of each class.
    "DISTILLATION.DIST_GAMMA": Option(1.0, least=0, when="DISTILLATION.TYPE=dist"),
    # nkd: weight of the other classes among themselves.
    "DISTILLATION.NKD_GAMMA": Option(1.5, least=0, when="DISTILLATION.TYPE=nkd"),
    # ttm, wttm: exponent of the teacher's probabilities, the inverse of a temperature of the teacher alone.
    "DISTILLATION.TTM_GAMMA": Option(0.1, least=0, when="DISTILLATION.TYPE=ttm,wttm"),
    # ctkd: epochs until the temperature learns at its full rate; 0 = from the start.
    "DISTILLATION.CTKD_EPOCHS": Option(10, least=0, when="DISTILLATION.TYPE=ctkd"),
    # ctkd: minimum temperature.
    "DISTILLATION.CTKD_LEAST": Option(1.0, least=1e-6, when="DISTILLATION.TYPE=ctkd"),
    # ctkd: maximum temperature minus CTKD_LEAST.
    "DISTILLATION.CTKD_RANGE": Option(20.0, least=0, when="DISTILLATION.TYPE=ctkd"),
    # ofa: exponent e of the targets (p + y)^e - y, where p are the teacher's probabilities and y the one-hot label;
    # 1 = p itself.
    "DISTILLATION.OFA_EPS": Option(1.0, least=0, when="DISTILLATION.TYPE=ofa"),
    # Weight of each teacher for each image: confidence = softmax over the teachers of their negative entropy; entropy =
    # of their entropy, the formula that the reproduction of STD prints; uniform = equal weights.
    "DISTILLATION.WEIGHTING": Option("confidence", registry="WEIGHTINGS"),
    # sgd (with Nesterov momentum), momentum (without), adamw, or another first-order optimizer of timm.optim.
    "OPTIM.NAME": Option("adamw"),
    # Peak learning rate.
    "OPTIM.BASE_LR": Option(5e-4, least=0),
    # BASE_LR is multiplied by TRAIN.BATCH_SIZE / LR_BATCH; 0 = used as it is.
    "OPTIM.LR_BATCH": Option(0, least=0),
    # Decoupled weight decay of adamw, L2 of sgd; 0 = off. It is not applied to parameters of one dimension (biases,
    # norms) and tokens.
    "OPTIM.WEIGHT_DECAY": Option(0.05, least=0),
    # Apply weight decay to all parameters, as torch.optim does by default.
    "OPTIM.DECAY_ALL": Option(False, when="OPTIM.WEIGHT_DECAY"),
    # Parts of the backbone in which it applies to all parameters, also biases and norms, named as in MODEL.FREEZE; [] =
    # none.
    "OPTIM.DECAY_ALL_OF": Option([], of=str, when="OPTIM.WEIGHT_DECAY and OPTIM.DECAY_ALL=False"),
    # Momentum, above 0 for `sgd`, whose Nesterov form needs it; 0 = off for `momentum`.
    "OPTIM.MOMENTUM": Option(0.9, least=0, greatest=1),
    # Maximum gradient norm of the main objective; 0 = no clipping. MINE's steps are not clipped.
    "OPTIM.CLIP_NORM": Option(0.0, least=0),
    # Epochs of the run; a larger number extends an existing one. Tables then omit it if SCHEDULE is cosine, or if the
    # previous number is not a multiple of TEST.PERIOD.
    "OPTIM.MAX_EPOCH": Option(300, least=1, on_resume="longer"),
    # Learning rate schedule after the warm-up; it is counted from the first epoch, so the warm-up replaces its start.
    "OPTIM.SCHEDULE": Option(("cosine", "step", "constant")),
    # How often the learning rate is updated: step = in every iteration; epoch = at the start of every epoch; epoch_late
    # = so, too, but an epoch behind, so that the first two epochs have the same (as in the code of DeiT, STD and ViDT).
    "OPTIM.LR_PERIOD": Option(("step", "epoch", "epoch_late"), when="OPTIM.SCHEDULE!=constant or OPTIM.WARMUP_EPOCHS"),
    # Epochs of linear warm-up from WARMUP_LR, at most MAX_EPOCH; 0 = off.
    "OPTIM.WARMUP_EPOCHS": Option(0.0, least=0, within="OPTIM.MAX_EPOCH"),
    # Learning rate at the start of the warm-up.
    "OPTIM.WARMUP_LR": Option(1e-6, least=0, when="OPTIM.WARMUP_EPOCHS"),
    # Learning rate at the end of `cosine`.
    "OPTIM.MIN_LR": Option(0.0, least=0, when="OPTIM.SCHEDULE=cosine"),
    # Epochs at which `step` multiplies the learning rate by GAMMA, above 0 and before MAX_EPOCH; [] = never.
    "OPTIM.STEPS": Option([], of=float, least=0),
    # Factor of `step`.
    "OPTIM.GAMMA": Option(0.1, least=0, greatest=1, when="OPTIM.SCHEDULE=step"),
    # Training batch size, of all processes together; an incomplete last batch is dropped.
    "TRAIN.BATCH_SIZE": Option(128, least=1),
    # Gradient accumulation: parts of a batch that are computed one after another for one optimizer step, which takes
    # less memory; 1 = off. BATCH_SIZE, learning rates, mixing, MINE and the moving average refer to the whole batch.
    # What differs: batch norms use the statistics of each part, terms that compare the images of a batch compare those
    # of a part, and TOKENS divides by the tokens of a part.
    "TRAIN.ACCUMULATE": Option(1, least=1, greatest=65536),
    # Decay of the exponential moving average of the weights (EMA), per iteration; 0 = off.
    "TRAIN.EMA_DECAY": Option(0.0, least=0, greatest=0.9999999),
    # Let the decay start small and grow to EMA_DECAY, which short runs need.
    "TRAIN.EMA_WARMUP": Option(False, when="TRAIN.EMA_DECAY"),
    # Compile the forward pass of a training step, which takes a minute or two; autotune = time several kernels for each
    # product and take the fastest, which takes minutes more; graphs = record it as CUDA graphs, too: not for detection,
    # which matches boxes on the CPU, nor with values that change in each epoch (KD.WARMUP_EPOCHS,
    # FEATURE.WARMUP_EPOCHS, ctkd), for which they would be recorded anew; auto = on for CUDA and runs of at least 5000
    # iterations, otherwise off. Its choice at the start of a run is kept when the run is extended.
    "TRAIN.COMPILE": Option(("auto", "off", "on", "graphs", "autotune"), recipe=False),
    # Number of newest checkpoints that are kept to resume from: last.pt, last-1.pt, ...; 1 = last.pt alone, without a
    # fallback if it is damaged.
    "TRAIN.KEEP": neutral(2, least=1),
    # Epochs between checkpoints, the most that are repeated after a stop or a kill. The first epoch after each start,
    # the last one and each that is the best so far are always saved.
    "TRAIN.SAVE_PERIOD": neutral(1, least=1),
    # Test batch size of each process; 0 = 200 on a CPU, and on CUDA as many images as have 2^24 pixels, at most 2048.
    "TEST.BATCH_SIZE": neutral(0, least=0),
    # Epochs between evaluations; the last epoch is always evaluated.
    "TEST.PERIOD": Option(1, least=1),
    # Checkpoint that --mode test scores.
    "TEST.WEIGHTS": neutral("", path=True, mode="test"),
    # Images that --mode test scores: of the test split, those held out of the training split, or those trained on.
    "TEST.SPLIT": neutral(("test", "held-out", "train"), mode="test"),
    # File in an existing folder, to which --mode test writes the predictions for every test image; its name ends in
    # .npz in classification (logits of the student and its teachers), in .json in detection (the student's results in
    # COCO's standard format); "" = off.
    "TEST.PREDICTIONS": neutral("", path=True, mode="test"),
    # Also write the scores of --mode test, with what was tested, to test.json in the folder of TEST.WEIGHTS.
    "TEST.JSON": neutral(False, mode="test"),
    # Score the moving average in that checkpoint instead of the weights.
    "TEST.EMA": neutral(False, mode="test"),
    # Prediction that counts as the result: avg (class and distillation heads), cls, dist; "" = the method's own.
    "TEST.PREDICTION": Option(""),
    # Warm-up iterations of --mode time, which are not timed.
    "TIME.WARMUP": neutral(3, least=0, mode="time"),
    # Timed iterations of --mode time.
    "TIME.STEPS": neutral(10, least=1, mode="time"),
    # Where the scores are published; "" = nowhere.
    "PUBLISHED.SOURCE": neutral(""),
    # Options in which the run differs from the recipe of the published scores, that of the config that states them. It
    # is found by comparison, not to be set.
    "PUBLISHED.CHANGED": neutral([], of=str),
}
