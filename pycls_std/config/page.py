"""Every option of a run on one page: its default, its unit, what turns it off, and what else it says of itself.

A tuple lists the allowed values, the default first; see `core/option.py` for the rest. The private options of a term
or a trainer stand in its own file as `OPTIONS` (pycls_std/terms/, pycls_std/trainers/), and form a section of its name;
the published scores of a table, PUBLISHED.TOP1 and so on, follow from the metrics (pycls_std/metrics/).
"""

from pycls_std.core.option import Option, neutral

PAGE = {
    # Name of the run in logs and tables; "" = the config file's name without .yaml.
    "NAME": Option("", on_resume="free", recipe=False),
    # Method, by its name in pycls_std/trainers/: a preset of the weights of terms (pycls_std/terms/). Any other term
    # joins it when its own weight is set.
    "TRAINER": Option("baseline", registry="TRAINERS", student=True),
    # Folder of the run record; "" = runs/NAME/seed<SEED>.
    "OUT_DIR": neutral("", path=True),
    # Seed of weights, dropout and, unless DATA.SEED has its own, the images. Every epoch is reseeded from (SEED,
    # epoch).
    "SEED": Option(0, least=0, greatest=2**32 - 1, rows=False),
    # Where to compute; auto = cuda where there is one.
    "DEVICE": neutral(("auto", "cpu", "cuda")),
    # Arithmetic of the forward pass (autocast); weights stay fp32.
    "PRECISION": Option(("fp32", "bf16", "fp16")),
    # On CUDA, round the factors of every fp32 convolution and product to TF32 (10 bits of mantissa), which is faster;
    # false = full fp32 in both, so that fp32 means the same on every device. Resizing of images stays in full fp32; the
    # products of VkD's projection do not, whose columns are then orthonormal to 1e-3.
    "CUDA.TF32": Option(False, when="DEVICE!=cpu", recipe=False),
    # On CUDA, take kernels that give the same bits each time, which exact resume needs there; they are slower, and a
    # step whose operation has none is refused. A CPU gives the same bits anyway.
    "CUDA.DETERMINISTIC": Option(False, when="DEVICE!=cpu", rows=False, recipe=False),
    # On CUDA, how the token mixing MLPs of an MLP-Mixer student are computed: plain = by torch's layers; fused = by
    # kernels in Triton that write no hidden units to memory, the same within rounding; auto = time both on a block when
    # a run is begun, forward and backward, and take the faster one; a run that goes on keeps it, but where the kernels
    # cannot be, such as without Triton: there it is plain, and says so.
    "CUDA.TOKEN_MIXING": Option(("plain", "fused", "auto"), when="DEVICE!=cpu", recipe=False),
    # Iterations between two progress lines; 0 = one line an epoch.
    "LOG_PERIOD": neutral(50, least=0),
    # What a label is, by its name in pycls_std/tasks/.
    "TASK.NAME": Option("classification", registry="TASKS", student=True),
    # Weight of the task's own loss, that of the labels; 0 = off.
    "TASK.WEIGHT": Option(1.0, least=0, student=True),
    # Student: a name of pycls_std/models/ (mixer_s4, resmlp_s24, resnet56, wrn_40_2, deit_ti_conv, ...) or any timm
    # model.
    "MODEL.NAME": Option("mixer_nano4", student=True),
    # Keyword arguments of the model's constructor (patch_size, embed_dim, num_blocks, ...); {} = its own defaults, null
    # drops those of a _BASE_. image_token: true makes the distillation token of any DeiT with two heads the mean of the
    # image's patch embeddings, false the learned one of a deit_*_conv.
    "MODEL.ARGS": Option({}, student=True),
    # Classes; 0 = as many as the data has, another number must agree with the data.
    "MODEL.NUM_CLASSES": neutral(0, least=0, greatest=1_000_000),
    # Stochastic depth rate of the last block; of Mixer, ResMLP and gMLP that of every block; 0 = off.
    "MODEL.DROP_PATH": Option(0.0, least=0, greatest=1, student=True),
    # Epsilon of every LayerNorm of the backbone; 0 = the model's own (timm's mixers 1e-6, the STD reference 1e-5).
    "MODEL.NORM_EPS": Option(0.0, least=0, greatest=1, student=True),
    # What linear layers and convolutions of the backbone start from: "" = what the model gives them (timm's mixers a
    # classifier of zeros); torch = PyTorch's own, uniform within 1 / sqrt(inputs of a unit).
    "MODEL.INIT": Option(("", "torch"), student=True),
    # Weights that training starts from, in the forms of DISTILLATION.TEACHER_WEIGHTS; "" = random. A classifier of
    # another number of classes stays random, all else must fit. A vidt_swin_* also starts from a Swin classifier:
    # timm:swin_tiny_patch4_window7_224, or a file. DATA.NORMALIZATION should be what they were trained with.
    "MODEL.WEIGHTS": Option("", path=True, student=True),
    # Parts of the backbone that do not train: names of its modules or parameters, such as blocks.0 or patch_embed, with
    # * and ? for any characters; [] = none. Their batch norms go on to take statistics.
    "MODEL.FREEZE": Option([], of=str),
    # Dataset, by its name in pycls_std/datasets/.
    "DATA.NAME": Option("digits", registry="DATASETS", student=True),
    # Folder the dataset lies in, or is downloaded to. The name of a folder of images is that of the dataset.
    "DATA.ROOT": neutral("data", path=True),
    # Share of the training images of each class that is held out, the same ones for every seed: the best epoch is the
    # best on them, and teachers are judged there; 0 = off, and both are on the test split.
    "DATA.VAL_FRACTION": Option(0.0, least=0, greatest=0.9, column="held out"),
    # Training images of each class, the first in the dataset's order that are not held out; 0 = all. The test split
    # stays whole.
    "DATA.PER_CLASS": Option(0, least=0, column="images a class"),
    # Training images, the first in the dataset's order that are not held out; 0 = all. The test split stays whole.
    "DATA.IMAGES": Option(0, least=0, column="images"),
    # Seed of order, augmentation and mixing; -1 = SEED. With one for several SEEDs these see the same views, and can
    # share what a teacher said of them.
    "DATA.SEED": Option(-1, least=-1, greatest=2**32 - 1, recipe=False),
    # Side of the square input images, pixels; in detection the shortest side at test, from which other sizes follow.
    "DATA.IMAGE_SIZE": Option(32, least=1, greatest=4096, student=True),
    # Channel mean and standard deviation of the student's input; "" = the dataset's own, or imagenet, half, cifar10,
    # cifar100, tiny_imagenet, digits.
    "DATA.NORMALIZATION": Option("", student=True),
    # At test, the shorter side (FIT squash: both) is resized to IMAGE_SIZE / CROP_RATIO and the centre cut out; 1 = a
    # square image is resized to IMAGE_SIZE and not cropped.
    "DATA.CROP_RATIO": Option(1.0, least=0.01, greatest=1, student=True),
    # At test, and in training but for AUG.CROP `resized`, an image that is not square has its shorter side resized and
    # its centre cut out (crop), or both sides resized, which distorts it (squash).
    "DATA.FIT": Option(("crop", "squash"), student=True),
    # Filter that test images are resized with; like Pillow's, both are antialiased.
    "DATA.INTERPOLATION": Option(("bicubic", "bilinear"), student=True),
    # Where views are made: in batches on the device, from images held in memory; or one by one by worker processes.
    # auto = memory for a classifier's images that take at most 2 GiB at 4 bytes a pixel; with AUG.CROP resized, of one
    # size.
    "DATA.LOADER": Option(("auto", "memory", "workers"), recipe=False),
    # Processes that read images for each training process; 0 = that one reads.
    "DATA.NUM_WORKERS": neutral(2, least=0, greatest=1024),
    # Training crop: zero-padded random crop (small images), random resized crop (large images), plain resize.
    "AUG.CROP": Option(("pad", "resized", "none")),
    # Padding of the `pad` crop, pixels; 0 = no shift.
    "AUG.CROP_PADDING": Option(4, least=0, greatest=4096, when="AUG.CROP=pad"),
    # Least area of the `resized` crop, as a share of the image.
    "AUG.CROP_SCALE": Option(0.08, least=0.001, greatest=1, when="AUG.CROP=resized"),
    # Filter that training images or their crops are resized with; RandAugment moves by a bicubic one always.
    "AUG.INTERPOLATION": Option(("bicubic", "bilinear")),
    # Probability of a horizontal flip; 0 = off.
    "AUG.FLIP": Option(0.5, least=0, greatest=1),
    # RandAugment in timm's notation, e.g. rand-m9-mstd0.5-inc1; "" = off.
    "AUG.RAND_AUGMENT": Option(""),
    # 3-Augment: each image is made grey, solarized or blurred, after RandAugment and before colour jitter.
    "AUG.THREE_AUGMENT": Option(False),
    # Strength of colour jitter (brightness, contrast, saturation); 0 = off.
    "AUG.COLOR_JITTER": Option(0.0, least=0),
    # Probability that a rectangle is erased with noise; 0 = off.
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
    # Repeated augmentation: views of an image within an epoch, whose length stays; 1 = off.
    "AUG.REPEATS": Option(1, least=1, greatest=1000),
    # Teachers, by model name; [] = none. The TEACHER_* lists run parallel to it; [] there = each entry's default.
    "DISTILLATION.TEACHERS": Option([], of=str),
    # One each: a checkpoint or a file of weights, safetensors too | https://...#sha256=<hex> | timm (the name holds the
    # tag) | timm:<name> of another model | hf-hub:<owner>/<name> of timm's models | published:cifar100_resnet56.
    "DISTILLATION.TEACHER_WEIGHTS": Option([], of=str, path=True),
    # Input normalisation by name; "" = what the weights were trained with, or the dataset's own where that is not
    # known.
    "DISTILLATION.TEACHER_NORMS": Option([], of=str),
    # Input side, pixels; 0 = what the weights were trained at, or the student's where that is not known. [] in
    # detection, where all see the same images.
    "DISTILLATION.TEACHER_SIZES": Option([], of=int, least=0, greatest=4096),
    # Keyword arguments of each one's constructor, [{taps: before_relu}, {}]; {} = none. As MODEL.ARGS, and norm_eps,
    # as MODEL.NORM_EPS; those that a checkpoint was trained with stay where they are not given here.
    "DISTILLATION.TEACHER_ARGS": Option([], of=dict),
    # Prediction that each teaches by, of a student trained here with several heads: avg, cls, dist; "" = the one that
    # its run counted (TEST.PREDICTION).
    "DISTILLATION.TEACHER_PREDICTIONS": Option([], of=str),
    # Least result of every teacher (top-1 accuracy or AP, %) on the held-out images, without DATA.VAL_FRACTION on the
    # test split; below it the run refuses. 0 = off, -1 = the task's own (classification: a quarter of the way from
    # chance to 100; detection: 5).
    "DISTILLATION.TEACHER_MIN_ACC": neutral(-1.0, least=-1, greatest=100),
    # Arithmetic of the teachers, whose weights are converted to it; auto = PRECISION's, and fp32 for a teacher that
    # then names more than 1 % of 1000 test images otherwise, or whose features are off by more than 5 % of their size.
    "DISTILLATION.TEACHER_PRECISION": Option(("auto", "fp32", "bf16", "fp16"), recipe=False),
    # Fold the teachers' batch norms into the convolutions before them: the same function but for rounding.
    "DISTILLATION.TEACHER_FOLD": Option(True, recipe=False),
    # Statistics of the teachers' batch norms: those they were trained with; or those of each batch, as in references
    # that put the teacher into training mode. Nothing is folded then, and each process has its own.
    "DISTILLATION.TEACHER_BN": Option(("eval", "batch")),
    # Folder that keeps what the teachers say of every training view, for later runs that see the same views (DATA.SEED)
    # of images in memory; or, with OFFLINE, of every training image. "" = off.
    "DISTILLATION.CACHE": neutral("", path=True),
    # Ask the teachers of the plain training images alone, once and before training: what they say is kept in CACHE, and
    # features are cropped and mirrored with the image; what else is done to a view, such as RandAugment, they do not
    # follow. False = they are asked of every view.
    "DISTILLATION.OFFLINE": Option(False, column="offline"),
    # Arithmetic of what is kept; with fp32, all of it, TRAIN.COMPILE off and, on a GPU, CUDA.DETERMINISTIC a run ends
    # as without the cache, bit for bit.
    "DISTILLATION.CACHE_PRECISION": Option(("fp32", "fp16")),
    # Logits of each view that are kept, the largest ones, with the sum of the rest; 0 = all.
    "DISTILLATION.CACHE_TOP": Option(0, least=0, greatest=65535),
    # Form of logit distillation, by its name in pycls_std/losses/: the teacher's label (hard), its distribution (soft),
    # that in two parts (decoupled, which is DKD; nkd), its power (ttm, wttm), it at a temperature that learns (ctkd),
    # with the label made larger (ofa), or its correlations over classes and images (dist).
    "DISTILLATION.TYPE": Option("hard", registry="LOGIT_LOSSES", column="form"),
    # Temperature of soft, decoupled, nkd and dist; the base temperature of standardized logits.
    "DISTILLATION.TEMPERATURE": Option(1.0, least=1e-6, when="DISTILLATION.TYPE!=hard,ttm,wttm,ctkd,ofa"),
    # Compare logits of mean 0 and standard deviation 1 over the classes, the student's and the teacher's (logit
    # standardization). A head that would start at zero, as a mixer's, starts small and random then.
    "DISTILLATION.LOGIT_STANDARD": Option(False, column="standardized"),
    # Factor of the distillation loss while LOGIT_STANDARD is on.
    "DISTILLATION.EXTRA_WEIGHT": Option(1.0, least=0, when="DISTILLATION.LOGIT_STANDARD"),
    # Decoupled distillation: weight of the target class against all others.
    "DISTILLATION.DKD_ALPHA": Option(1.0, least=0, when="DISTILLATION.TYPE!=hard,soft,dist,nkd,ttm,wttm,ctkd,ofa"),
    # Decoupled distillation: weight of the other classes among themselves.
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
    # ctkd: least temperature.
    "DISTILLATION.CTKD_LEAST": Option(1.0, least=1e-6, when="DISTILLATION.TYPE=ctkd"),
    # ctkd: how far above it the greatest one is.
    "DISTILLATION.CTKD_RANGE": Option(20.0, least=0, when="DISTILLATION.TYPE=ctkd"),
    # ofa: exponent of the teacher's probabilities, of which the label's is 1 larger; 1 = they stay as they are.
    "DISTILLATION.OFA_EPS": Option(1.0, least=0, when="DISTILLATION.TYPE=ofa"),
    # Weight of each teacher for each image: confidence = softmax over the teachers of minus its entropy; entropy = of
    # its entropy, as the reproduction of STD prints it; uniform = all alike.
    "DISTILLATION.WEIGHTING": Option("confidence", registry="WEIGHTINGS"),
    # sgd (with Nesterov momentum), momentum (without), adamw, or another first-order optimizer of timm.optim.
    "OPTIM.NAME": Option("adamw"),
    # Peak learning rate.
    "OPTIM.BASE_LR": Option(5e-4, least=0),
    # BASE_LR is multiplied by TRAIN.BATCH_SIZE / LR_BATCH; 0 = used as it is.
    "OPTIM.LR_BATCH": Option(0, least=0),
    # Decoupled weight decay of adamw, L2 of sgd; 0 = off. It spares parameters of one dimension (biases, norms) and
    # tokens.
    "OPTIM.WEIGHT_DECAY": Option(0.05, least=0),
    # It spares nothing, as torch.optim by itself.
    "OPTIM.DECAY_ALL": Option(False, when="OPTIM.WEIGHT_DECAY"),
    # Parts of the backbone in which it spares nothing, neither biases nor norms, named as in MODEL.FREEZE; [] = none.
    "OPTIM.DECAY_ALL_OF": Option([], of=str, when="OPTIM.WEIGHT_DECAY and OPTIM.DECAY_ALL=False"),
    # Momentum, above 0 for `sgd`, whose Nesterov form needs it; 0 = off for `momentum`.
    "OPTIM.MOMENTUM": Option(0.9, least=0, greatest=1),
    # Largest gradient norm of the main objective; 0 = no clipping. MINE's steps are not clipped.
    "OPTIM.CLIP_NORM": Option(0.0, least=0),
    # Epochs of the run; more of them extend it. Tables leave it out then if SCHEDULE is cosine, or if the number before
    # is no multiple of TEST.PERIOD.
    "OPTIM.MAX_EPOCH": Option(300, least=1, on_resume="longer"),
    # Shape of the learning rate after the warm-up; the shape is counted from the first epoch on.
    "OPTIM.SCHEDULE": Option(("cosine", "step", "constant")),
    # How often the learning rate follows shape and warm-up: in every step; at the start of every epoch; or epoch_late,
    # one epoch behind, so that the first two epochs have the same (as in the code of DeiT, STD and ViDT).
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
    # Images in a training batch, of all processes together; an incomplete last batch is dropped.
    "TRAIN.BATCH_SIZE": Option(128, least=1),
    # Parts of a batch that are computed one after another for one step of the optimizer, which takes less memory;
    # 1 = off. BATCH_SIZE, learning rates, mixing, MINE and the average are those of the whole batch. What differs:
    # batch norms see the statistics of each part, terms that compare the images of a batch compare those of a part, and
    # TOKENS divides by the tokens of a part.
    "TRAIN.ACCUMULATE": Option(1, least=1, greatest=65536),
    # Decay of the moving average of the weights, per iteration; 0 = off.
    "TRAIN.EMA_DECAY": Option(0.0, least=0, greatest=0.9999999),
    # Let the average start short and grow to EMA_DECAY, which short runs need.
    "TRAIN.EMA_WARMUP": Option(False, when="TRAIN.EMA_DECAY"),
    # Compile the forward pass of a training step, which takes a minute or two; autotune = time several kernels for each
    # product and take the fastest, which takes minutes more; graphs = record it as CUDA graphs, too, but for
    # detection, which matches boxes on the CPU, and what is another number in each epoch (KD.WARMUP_EPOCHS,
    # FEATURE.WARMUP_EPOCHS, ctkd), for which they would be recorded anew; auto = on for CUDA and runs of at least 5000
    # iterations, otherwise off. What it chooses when a run is begun stays when the run is extended.
    "TRAIN.COMPILE": Option(("auto", "off", "on", "graphs", "autotune"), recipe=False),
    # Newest checkpoints that are kept to continue from: last.pt, last-1.pt, ...; 1 = last.pt alone, and no way back
    # from a damaged one.
    "TRAIN.KEEP": neutral(2, least=1),
    # Epochs between checkpoints to continue from, at most so many are computed again after a stop or a kill. The first
    # epoch of a start, the last one and each that is the best so far are always saved.
    "TRAIN.SAVE_PERIOD": neutral(1, least=1),
    # Images in a test batch, of each process; 0 = 200 on a CPU, and on CUDA as many as have 2^24 pixels, at most 2048.
    "TEST.BATCH_SIZE": neutral(0, least=0),
    # Epochs between evaluations; the last epoch is always evaluated.
    "TEST.PERIOD": Option(1, least=1),
    # Checkpoint that --mode test scores.
    "TEST.WEIGHTS": neutral("", path=True, mode="test"),
    # Images that --mode test scores: of the test split, those held out of the training split, or those trained on.
    "TEST.SPLIT": neutral(("test", "held-out", "train"), mode="test"),
    # File to which --mode test writes what is said of every test image, in a folder that is there; its name ends in
    # .npz in classification (logits of the student and its teachers), in .json in detection (COCO's standard results of
    # the student); "" = off.
    "TEST.PREDICTIONS": neutral("", path=True, mode="test"),
    # Write the scores of --mode test to test.json, too, in the folder of TEST.WEIGHTS, with what was tested.
    "TEST.JSON": neutral(False, mode="test"),
    # Score the moving average in that checkpoint instead of the weights.
    "TEST.EMA": neutral(False, mode="test"),
    # Prediction that counts as the result: avg (class and distillation heads), cls, dist; "" = the method's own.
    "TEST.PREDICTION": Option(""),
    # Iterations of --mode time that are not counted, at first.
    "TIME.WARMUP": neutral(3, least=0, mode="time"),
    # Iterations of --mode time that are counted.
    "TIME.STEPS": neutral(10, least=1, mode="time"),
    # Where they are published; "" = nowhere.
    "PUBLISHED.SOURCE": neutral(""),
    # In what the run is not the recipe that the published scores belong to, that of the file that states them. It is
    # found by comparing, not to be set.
    "PUBLISHED.CHANGED": neutral([], of=str),
}
