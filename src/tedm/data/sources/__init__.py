"""Sources of images: one module per published layout, and those for everybody's own."""

from pathlib import Path

from tedm import config
from tedm.config import DatasetConfig, ImageConfig
from tedm.data.sources.base import Each, Found, Picture, Source

__all__ = ["Each", "Found", "Picture", "Source", "open_source"]


def open_source(
    dataset: DatasetConfig, image: ImageConfig, seed: int, data_root: Path, where: str, drawings: Path
) -> Source:
    """Open the source of a data set: list what is there, read nothing yet.

    Args:
        dataset: whose source.
        image: channels, classes and size.
        seed: of drawn images.
        data_root: relative paths start here.
        where: the data set's path in the configuration, for messages.
        drawings: folder for the volumes of synthetic sources, which are written to disk and read back.

    Raises:
        TedmError: settings that no file can satisfy. What is wrong with the files is in `problems`.
    """
    # Imported where they are needed: each format has its own library.
    match dataset.source:
        case config.PhantomSource() as source:
            from tedm.data.sources.phantom import Phantoms

            return Phantoms(source, image, seed, where)
        case config.BrainSource() as source:
            from tedm.data.sources.brain import open_brains

            return open_brains(source, image, seed, where, drawings)
        case config.FolderSource() as source:
            from tedm.data.sources.folder import FolderImages

            return FolderImages(source, image, data_root, where)
        case config.TableSource() as source:
            from tedm.data.sources.table import TableImages

            return TableImages(source, image, data_root, where)
        case config.NiftiSource() as source:
            from tedm.data.sources.nifti import NiftiVolumes

            return NiftiVolumes(source, image, data_root, where)
        case config.DicomSource() as source:
            from tedm.data.sources.dicom import DicomImages

            return DicomImages(source, image, data_root, where)
        case config.ChestXray14Source() as source:
            from tedm.data.sources.chestxray14 import ChestXray14

            return ChestXray14(source, image, data_root, where)
        case config.JSRTSource() as source:
            from tedm.data.sources.jsrt import JSRT

            return JSRT(source, image, data_root, where)
        case config.XLSorSource() as source:
            from tedm.data.sources.xlsor import XLSor

            return XLSor(source, image, data_root, where)
        case config.MontgomerySource() as source:
            from tedm.data.sources.montgomery import Montgomery

            return Montgomery(source, image, data_root, where)
        case config.UKBBSource() as source:
            from tedm.data.sources.ukbb import UKBiobank

            return UKBiobank(source, image, data_root, where)
        case config.BraTSSource() as source:
            from tedm.data.sources.brats import BraTS

            return BraTS(source, image, data_root, where)
