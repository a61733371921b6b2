"""The numbers that the prose of docs/results.md tells are those of logs/, computed anew from the curves of the runs."""

import json
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy.stats import t

ROOT = Path(__file__).resolve().parents[1]
FEW = ROOT / "logs" / "tinyimagenet100-32px_few_cpu"


@pytest.fixture(scope="module")
def prose():
    """The page in one line."""
    return " ".join((ROOT / "docs" / "results.md").read_text().split())


def scores(row: Path, chosen_by="val/top1") -> dict[int, float]:
    """The test accuracy of each seed of a row at its best epoch by a score; of equal ones the first."""
    found = {}
    for path in row.glob("seed*/metrics.jsonl"):
        epochs = [json.loads(line) for line in path.read_text().splitlines()]
        best = max((epoch for epoch in epochs if chosen_by in epoch), key=lambda epoch: epoch[chosen_by])
        found[int(path.parent.name.removeprefix("seed"))] = best["test/top1"]
    return found


def differences(first: str, second: str) -> list[float]:
    own, other = scores(FEW / first), scores(FEW / second)
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def interval(values: list[float]) -> tuple[float, float]:
    """The mean's 95 % interval, by Student's t."""
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def told(first: str, second: str) -> tuple[float, str, float, float]:
    """The mean difference of two rows, its interval in words, and in numbers."""
    values = differences(first, second)
    assert len(values) == 3
    low, high = interval(values)
    return mean(values), f"interval {low:.1f} to {high:.1f}", low, high


def test_what_is_said_of_tokens_and_plain_heads(prose):
    ahead, between, low, _ = told("STD_no-tokens", "STD")
    assert low > 0 and f"plain heads are {ahead:.1f} points ahead of STD's tokens ({between})" in prose
    apart, between, low, high = told("STD_soft_no-tokens", "STD_soft")
    assert low < 0 < high and f"both end alike (difference {abs(apart):.1f}, {between})" in prose
    apart, between, low, high = told("STD", "STD_no-MINE")
    assert low < 0 < high and f"MINE adds nothing (difference {abs(apart):.1f}, {between}; published: 0.08)" in prose


def test_what_is_said_of_soft_losses_and_locality_guidance(prose):
    over, _, low, high = told("STD_soft", "KD")
    assert low < 0 < high and f"the {over:.1f} points of STD_soft over KD are within noise" in prose
    for row in ("KD_ours", "DKD"):
        _, _, low, high = told(row, "KD")
        assert low < 0 < high and "within noise, as are standardized logits and DKD" in prose
    over_kd, over_soft = told("locality", "KD"), told("locality", "STD_soft")
    assert min(over_kd[2], over_soft[2]) > 0
    said = f"{over_kd[0]:.1f} points over KD and {over_soft[0]:.1f} over STD_soft ({over_soft[1]})"
    assert f"Locality guidance is the highest, {said}" in prose


def test_what_is_said_of_a_second_teacher(prose):
    added = [told(row, "STD") for row in ("STD_multi", "STD_paper", "STD_propagated")]
    assert all(low < 0 < high for _, _, low, high in added)
    least, most = (each(ahead for ahead, *_ in added) for each in (min, max))
    assert f"A second teacher adds {least:.1f} to {most:.1f} points to STD, within noise" in prose


def test_what_is_said_of_all_gains(prose):
    rows = sorted(path.name for path in FEW.iterdir() if path.name not in ("base", "r-20", "r-32"))
    assert len(rows) == 15
    assert {len(scores(FEW / row)) for row in rows} == {3} and "All have three seeds." in prose
    gains = {row: mean(differences(row, "base")) for row in rows}
    assert f"Each gains {min(gains.values()):.0f} to {max(gains.values()):.0f} points over the baseline" in prose
    assert max(gains, key=gains.get) == "locality"


def test_what_is_said_of_locality_guidance(prose):
    """Of the last epochs, on one seed."""
    folder, last = ROOT / "logs" / "tin100_locality", {}
    for path in folder.glob("*/seed0/metrics.jsonl"):
        last[path.parents[1].name.removeprefix("deit-nano4_tin100_")] = json.loads(path.read_text().splitlines()[-1])
    gains = {row: values["test/top1"] - last["base"]["test/top1"] for row, values in last.items()}
    assert f"Locality guidance gains {gains['ours']:.1f} points over the baseline" in prose
    assert f"standardized KD {gains['KD_ours']:.1f}; both together gain {gains['ours_KD']:.1f}," in prose


def last_ap(table: str, row: str) -> dict[int, float]:
    """The test AP of each seed of a detector after its last epoch."""
    paths = (ROOT / "logs" / table / row).glob("seed*/metrics.jsonl")
    return {int(path.parent.name[4:]): json.loads(path.read_text().splitlines()[-1])["test/ap"] for path in paths}


def test_what_is_said_of_detectors(prose):
    """Where the teacher has seen no more, and where it has."""
    all_images, few = (
        {row: last_ap(f"bccd-coco_{table}_cpu", row) for row in ("teacher", "base", "VkD", "token-matching")}
        for table in ("vidt", "vidt-few")
    )
    base, teacher = all_images["base"], all_images["teacher"]
    assert teacher[0] < mean(base.values()) and "came out no better than its students" in prose
    assert abs(all_images["VkD"][0] - mean(base.values())) < stdev(base.values())
    assert all_images["token-matching"][0] < min(base.values())
    found = "VkD is within one standard deviation of the baseline's seeds, token matching behind it, on one seed each."
    assert found in prose
    base, teacher = few["base"], few["teacher"]
    assert {len(few[row]) for row in ("base", "VkD", "token-matching")} == {2}
    ahead = teacher[0] - mean(base.values())
    assert f"it is {ahead:.0f} points of AP ahead of the baseline, of which nothing arrives" in prose
    apart = {row: [few[row][seed] - base[seed] for seed in base] for row in ("VkD", "token-matching")}
    low, high = interval(apart["VkD"])
    assert (
        low < mean(apart["VkD"]) < 0 < high and "VkD ends where the baseline does, within noise of two seeds" in prose
    )
    assert abs(mean(apart["VkD"])) < max(base.values()) - min(base.values())
    assert mean(apart["token-matching"]) < -5 and interval(apart["token-matching"])[1] > 0


def test_what_is_said_of_a_detector_that_learns_eight_images_by_heart():
    folder = ROOT / "logs" / "bccd-coco_8" / "swin-micro_bccd-8" / "seed0"
    said, run = (json.loads((folder / name).read_text()) for name in ("test.json", "run.json"))
    assert (said["split"], said["images"], said["epoch"], run["epochs"]) == ("train", 8, 400, 400)
    scores, minutes = said["scores"]["boxes"], round(60 * run["hours"])
    page = " ".join((ROOT / "docs" / "detection.md").read_text().split())
    assert f"8 images of BCCD and nothing else for 400 epochs ({minutes} minutes of one core)" in page
    assert f"has AP {scores['ap']:.1f} and AP50 {scores['ap50']:.1f} on these 8" in page
    assert scores["ap50"] > 95


def test_what_is_said_of_the_families(prose):
    folder = ROOT / "logs" / "cifar10-jpeg_families_cpu"
    found = {path.name: scores(path) for path in folder.iterdir()}
    assert {len(own) for name, own in found.items() if name != "r-20"} == {3}
    assert f"reaches {found['r-20'][0]:.1f}. All means rise, over three seeds" in prose

    def gains(row, over):
        return [found[row][seed] - found[over][seed] for seed in range(3)]

    families = dict.fromkeys(("Mixer", "ResMLP", "gMLP", "CycleMLP"), "STD")
    families |= dict.fromkeys(("DeiT", "T2T", "PVT", "CvT"), "locality")
    gained = {name: gains(f"{name}_{how}", name) for name, how in families.items()}
    mean_of = {name: mean(own) for name, own in gained.items()}
    assert min(mean_of.values()) > 0
    said = [f"{name}'s by {value:.1f}" for name, value in mean_of.items() if name != "Mixer"]
    assert f"by STD the mixer's by {mean_of['Mixer']:.1f}, {said[0]}, {said[1]} and {said[2]} points" in prose
    assert f"by locality guidance {said[3]}, {said[4]}, {said[5]} and {said[6]}" in prose
    noise = [name for name, own in gained.items() if interval(own)[0] <= 0]
    assert f"the intervals of {' and '.join(noise)} include 0" in prose
    weakest = sorted(families, key=lambda name: mean(found[name].values()))[:4]
    assert set(weakest) == set(sorted(families, key=mean_of.__getitem__)[4:])
    tokens = {name: gains(f"Mixer_{name}", "Mixer") for name in ("no-tokens", "both", "spatial", "channel")}
    plain, both, spatial, channel = map(mean, tokens.values())
    assert f"gains {plain:.1f} points without tokens, {both:.1f} with both kinds, {spatial:.1f} with spatial" in prose
    assert f"and {channel:.1f} with channel tokens alone" in prose
    assert interval(gains("Mixer_no-tokens", "Mixer_both"))[0] > 0 and "ahead of both kinds of tokens" in prose
    low, high = interval(gains("Mixer_STD", "Mixer_both"))
    assert low < 0 < high and abs(mean(gains("Mixer_STD", "Mixer_both"))) < 0.1


def gains_over(row: str, table: str) -> dict[str, str]:
    """What the page's table of gains over a row, which is made of the records, says of each other one."""
    page = (ROOT / "docs" / "results.md").read_text()
    lines = page.split(f"make_table.py logs/{table}/{row} ")[1].split("<!-- end")[0].splitlines()[1:]
    names, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    (column,) = (index for index, name in enumerate(names) if f"gain over {row} " in name)
    return {own[0]: own[column] for own in cells if own[0] != row}


def test_what_is_said_of_logits_and_features(prose):
    """Each difference is over the seeds that both rows have."""
    folder = ROOT / "logs" / "tinyimagenet100-32px_methods-deit_cpu"
    found = {path.name: scores(path) for path in folder.iterdir() if path.name != "r-20"}
    assert all(own.keys() == ({0, 1} if "OFA" in row else {0, 1, 2}) for row, own in found.items()) and len(found) == 14
    assert "images; three seeds, of OFA's rows two." in prose

    def gains(row, other="base"):
        return [found[row][seed] - found[other][seed] for seed in sorted(found[row].keys() & found[other].keys())]

    means = {row: mean(gains(row)) for row in found}
    order = ["DIST", "KD", "RSD", "FitNet", "VkD", "RKD", "AT"]
    assert order == [row for row in sorted(means, key=means.get, reverse=True) if row in order]
    dist, kd, rsd, fitnet, vkd, rkd, at = (f"{abs(means[row]):.1f}" for row in order)
    assert means["AT"] < 0 < means["RKD"]
    told = f"DIST gains {dist} points over the baseline, KD {kd}, RSD {rsd}, FitNet {fitnet}, VkD {vkd} and RKD {rkd};"
    assert f"{told} AT loses {at}." in prose
    noise = [row for row in order if interval(gains(row))[0] <= 0 <= interval(gains(row))[1]]
    assert noise == ["AT"] and "Of these gains, only AT's interval includes 0." in prose
    low, high = interval(gains("DIST", "KD"))
    ahead = f"DIST is {mean(gains('DIST', 'KD')):.1f} points ahead of KD (interval {low:.1f} to {high:.1f})"
    assert low > 0 and ahead in prose
    assert all(interval(gains(row, "KD"))[1] < 0 for row in ("RKD", "AT")) and "RKD and AT are behind it" in prose
    assert all(interval(gains(row, "KD"))[0] < 0 < interval(gains(row, "KD"))[1] for row in ("RSD", "FitNet", "VkD"))
    assert interval(gains("AT", "RKD"))[1] < 0 < interval(gains("FitNet"))[0] and "FitNet is ahead of it here" in prose
    own = [f"{means[f'VkD_{form}']:.1f}" for form in ("no-features", "linear", "mlp")]
    assert f"without features it gains {own[0]}, and with its projections" in prose
    assert f"orthogonal, linear and two layers, {vkd}, {own[1]} and {own[2]}." in prose
    over = {row: gains(row, "VkD_no-features") for row in ("VkD", "VkD_linear", "VkD_mlp")}
    least, most = (f"{each(map(mean, over.values())):.1f}" for each in (min, max))
    low, high = interval(over["VkD_linear"])
    linear = f"the linear projection's {least} (interval {low:.2f} to {high:.2f}; the third table)"
    assert f"features add {least} to {most} points, within noise except for {linear}" in prose
    assert low > 0 > max(interval(over[row])[0] for row in ("VkD", "VkD_mlp")) and min(map(mean, over.values())) > 0
    told = gains_over("VkD_no-features", folder.name)
    assert [row for row, said in told.items() if "within noise" not in said] == ["VkD_linear"]
    pairs = [gains(*pair) for pair in (("VkD", "VkD_linear"), ("VkD_mlp", "VkD"), ("VkD_mlp", "VkD_linear"))]
    assert all(interval(pair)[0] < 0 < interval(pair)[1] for pair in pairs) and "no projection is ahead" in prose
    heads, labels = (mean(gains(row, "OFA_no-heads")) for row in ("OFA", "OFA_labels"))
    assert f"gain {heads:.1f} points over OFA without heads, and {-labels:.1f} are lost" in prose
    assert min(gains("OFA", "OFA_no-heads")) > 0 > max(gains("OFA_labels", "OFA_no-heads"))
    ranges = [interval(gains(row, "OFA_no-heads")) for row in ("OFA", "OFA_labels")]
    assert all(low < 0 < high for low, high in ranges) and "both intervals include 0" in prose


def test_what_is_said_of_resnets_by_logits_and_features(prose):
    """On one seed."""
    folder = ROOT / "logs" / "tinyimagenet100-32px_methods-r20_cpu"
    found = {path.name: scores(path) for path in folder.iterdir() if path.name != "r-32"}
    assert all(list(own) == [0] for own in found.values()) and len(found) == 12
    gains = {row: own[0] - found["base"][0] for row, own in found.items()}
    order = ["DIST", "RSD", "AT", "KD", "RKD", "FitNet"]
    assert order == [row for row in sorted(gains, key=gains.get, reverse=True) if row in order]
    over = gains_over("KD", folder.name)
    assert all("within noise" in over[row] for row in ("AT", "RKD")) and "are within noise of KD here." in prose
    assert over["DIST"][0] == "+" and over["FitNet"][0] == "-" and "DIST is ahead of KD and FitNet behind it" in prose
    assert not any("within noise" in over[row] for row in ("DIST", "FitNet"))
    dist, rsd, at, kd, rkd, fitnet = (f"{gains[row]:.1f}" for row in order)
    told = f"DIST gains {dist} points over the baseline, RSD {rsd}, AT {at}, KD {kd}, RKD {rkd} and FitNet {fitnet};"
    assert told in prose
    vkd, linear, mlp, none = (f"{gains[f'VkD{form}']:.1f}" for form in ("", "_linear", "_mlp", "_none"))
    assert f"VkD gains {vkd} by its orthogonal projection, {linear} by a linear one" in prose
    alone = f"{gains['VkD_no-features']:.1f}"
    assert f", {mlp} by two layers and {none} by none. Without features," in prose
    assert f"at temperature 1 alone, it gains {alone}, so that projected features add nothing" in prose
    features = gains_over("VkD_no-features", folder.name)
    assert all("within noise" in features[row] for row in ("VkD", "VkD_linear", "VkD_mlp"))
    cost = gains["VkD_no-features"] - gains["VkD_none"]
    assert "within noise" not in features["VkD_none"] and f"plain ones cost {cost:.1f} points" in prose
