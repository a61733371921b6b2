"""Write small datasets of images in a folder for each class, for tests."""

from PIL import Image


def write_images(root, *, train=4, val=4, classes=("cat", "dog"), size=(8, 8), make=None):
    """Write as many images of each class into each split, and return the options of a run on them.

    make(number): the image of a number in its class and split; by default of one colour, another one for each number.
    """
    for split, images in {"train": train, "val": val}.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(images):
                image = make(number) if make else Image.new("RGB", size, (20 * number, 9, 9))
                image.save(root / split / name / f"{number}.png")
    return {"DATA__NAME": "image_folder", "DATA__ROOT": root, "MODEL__NUM_CLASSES": len(classes)}
