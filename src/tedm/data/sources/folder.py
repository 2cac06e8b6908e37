"""The source `folder`: image files, with masks of the same names in other folders."""

import re
from pathlib import Path

from tedm.config import FolderSource, ImageConfig
from tedm.data.sources.files import ImageFiles, listed, matched
from tedm.errors import TedmError


class FolderImages(ImageFiles):
    """PNG, JPEG, TIFF and DICOM images of a folder."""

    def __init__(self, source: FolderSource, image: ImageConfig, data_root: Path, where: str) -> None:
        super().__init__(image.classes, image.channels, where)
        self.fit, self.licence, self.cite = source.fit, source.licence, source.cite
        self.description = f"folder {source.images}"
        self.mask_size = "resize" if source.resize_masks else "same"
        folder = data_root / source.images
        self.images = listed(folder, f"{where}.source.images", self.problems, links=source.links)
        if isinstance(source.masks, str):
            self._one_folder(source, data_root / source.masks)
        elif source.masks is not None:
            self._folder_per_class(source, source.masks, data_root)
        self.keep(source.limit)
        self.has_masks = source.masks is not None
        if source.subject is not None:
            self.subjects = self._subjects(source.subject)

    def _one_folder(self, source: FolderSource, folder: Path) -> None:
        masks = listed(folder, f"{self.where}.source.masks", self.problems, links=source.links)
        found = matched(masks, self.images, folder, source.mask_suffix, self)
        self.masks = None if found is None else dict(found)

    def _folder_per_class(self, source: FolderSource, folders: dict[str, str], data_root: Path) -> None:
        where = f"{self.where}.source.masks"
        if set(folders) != set(self.classes):
            self.problems.append(
                f"{where}: has folders for {', '.join(folders)}; expected {', '.join(self.classes)}"
                " (image.classes)"
            )
            return
        by_class = []
        for name in self.classes:
            folder = data_root / folders[name]
            masks = listed(folder, f"{where}.{name}", self.problems, links=source.links)
            by_class.append(matched(masks, self.images, folder, source.mask_suffix, self) or {})
        # A class without a file is one that this image does not show; an image without any has no mask.
        everywhere = {image for masks in by_class for image in masks}
        incomplete = [
            (image, name)
            for image in sorted(everywhere)
            for name, masks in zip(self.classes, by_class, strict=True)
            if image not in masks
        ]
        self.problems.extend(
            f"{self.images[image]}: has no mask of the class {name}; add one (black if the image does not"
            " show it)"
            for image, name in incomplete
        )
        if not incomplete:
            self.masks = {image: [[masks[image]] for masks in by_class] for image in sorted(everywhere)}

    def _subjects(self, pattern: str) -> list[str]:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise TedmError(
                f"{self.where}.source.subject: {pattern} is no regular expression ({error})"
            ) from None
        if expression.groups != 1:
            raise TedmError(
                f"{self.where}.source.subject: {pattern} has {expression.groups} groups, expected one: the"
                " part of a name that tells the subject"
            )
        subjects = []
        for name in self.ids:
            match = expression.search(name)
            if match is None or match[1] is None:
                self.problems.append(
                    f"{self.images[name]}: source.subject ({pattern}) finds no subject in {name}"
                )
            subjects.append(name if match is None else match[1] or name)
        return subjects
