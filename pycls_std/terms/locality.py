"""Locality guidance: feature maps of the student are trained to match a convolutional teacher's.

Shapes: B batch, C channels, H height, W width.
"""

from torch import Tensor, nn

import pycls_std.losses  # noqa: F401  (registers the transforms)
from pycls_std.core.option import Option
from pycls_std.core.registry import FEATURE_TRANSFORMS, TERMS
from pycls_std.core.structures import Batch, Output, Progress, added
from pycls_std.core.text import counted
from pycls_std.losses.feature import feature_distance
from pycls_std.models.taps import choose_taps
from pycls_std.terms.base import Term


@TERMS.register("locality")
class Locality(Term):
    """weight sum over pairs of taps of the mean squared error between their maps, resized to the larger of the two.

    With the transform `linear` the student's map first goes through a 1x1 convolution with bias to the teacher's
    channels, which is trained with the student; `attention` and `similarity` have no parameters. Maps are raw outputs
    of blocks, without class and distillation tokens.
    Source: Li et al., ECCV 2022; weight, pairs and transforms as in its code (lkhl/tiny-transformers).
    """

    OPTIONS = {
        # Weight of locality guidance, the sum over all pairs of taps; 0 = off.
        "WEIGHT": Option(0.0, least=0),
        # Position of the guiding teacher in DISTILLATION.TEACHERS.
        "TEACHER": Option(0, least=0),
        # Taps of the student that are guided, ascending: last, a position, a share of the depth, or a name as --mode
        # info shows it.
        "STUDENT_TAPS": Option(["0", "1/2", "last"], column="guided taps"),
        # Taps of the teacher that guide them, one each, in the same form.
        "TEACHER_TAPS": Option(["0", "1/2", "last"]),
        # What is compared: linear = the maps, after a 1x1 projection; attention = their spatial attention maps;
        # similarity = pairwise similarities of the images of a batch (of each process's own share of it).
        "TRANSFORM": Option("linear", registry="FEATURE_TRANSFORMS", column="transform"),
    }

    def __init__(self, pairs: list[tuple[str, str]], projectors: list[nn.Module], *, weight, teacher, transform):
        taps = [list(names) for names in zip(*pairs, strict=True)]
        super().__init__(weight, student_taps=tuple(taps[0]), teacher_taps={teacher: tuple(taps[1])})
        self.pairs = pairs
        self.teacher = teacher
        self.transform = transform
        self.projectors = nn.ModuleList(projectors)

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from section LOCALITY. Raises ValueError for unknown taps or teachers."""
        run.refuse_padding("LOCALITY.WEIGHT")
        options = cfg.LOCALITY
        teacher = run.teacher(options.TEACHER, "LOCALITY.TEACHER")
        sizes = {"STUDENT_TAPS": run.student.taps, "TEACHER_TAPS": teacher.taps}
        taps = {key: choose_taps(f"LOCALITY.{key}", options[key], list(own)) for key, own in sizes.items()}
        own, other = taps.values()
        if len(own) != len(other):
            has = counted(len(own), "entry", "entries")
            raise ValueError(f"LOCALITY.STUDENT_TAPS has {has}, TEACHER_TAPS has {len(other)}")
        transform = FEATURE_TRANSFORMS.get(options.TRANSFORM)
        pairs, projectors = list(zip(own, other, strict=True)), []
        if getattr(transform, "projects", False):
            channels = [(sizes["STUDENT_TAPS"][s].channels, sizes["TEACHER_TAPS"][t].channels) for s, t in pairs]
            projectors = [nn.Conv2d(*pair, kernel_size=1) for pair in channels]
        return cls(pairs, projectors, weight=options.WEIGHT, teacher=options.TEACHER, transform=transform)

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"locality"}."""
        values = []
        for number, (own, other) in enumerate(self.pairs):
            features = student.features[own]
            if self.projectors:
                features = self.projectors[number](features)
            values.append(feature_distance(features, teachers[self.teacher].features[other], self.transform))
        return {"locality": self.weight * added(values)}
