"""How the four sites' radiographs differ, in numbers."""

from dataclasses import dataclass

Range = tuple[float, float]  # drawn uniformly in between, once per image


@dataclass(frozen=True)
class Site:
    """How the radiographs of a site look. Shares are probabilities per image, ranges are uniform."""

    # the patient before the detector
    field: Range  # side of the image, cm
    ap: float  # share of bedside (AP) views: wide heart, shallow breath, scapulae over the lungs
    tilt: float  # standard deviation of the rotation in the image plane, degrees
    off_centre: float  # standard deviation of the patient's position, cm
    stretch: Range  # width over height of a pixel; other than 1 where films were made square
    breath: Range  # inspiration, 0 (diaphragm high) … 1 (low); AP views lose a third of it
    # from exposure to grey
    scatter: Range  # scattered over primary radiation: washes out what lies behind the heart
    noise: Range  # standard deviation of log exposure behind the lungs, on pixels of 3 mm
    blur: Range  # standard deviation of the detector's point spread, cm
    lung_grey: Range  # 0 … 1, where the film curve puts the lungs …
    heart_grey: Range  # … and where the heart
    black: Range  # grey of unattenuated beam
    sharpen: Range  # strength of unsharp masking over 1.5 cm, as digital systems do it
    # borders and burnt-in marks
    collimated: float  # share with a collimator edge in view
    border: Range  # its distance from the image's edge, cm, drawn for each edge
    border_grey: Range
    blocks: float  # share with blackened name plates in the upper corners
    marker: float  # share with a side letter and lines of text
    # disease and devices
    nodule: float
    nodule_radius: Range  # cm
    consolidation: float
    effusion: float
    upper_lobe: float  # patches, streaks and cavities of tuberculosis
    interstitial: float  # coarse reticular texture, with haze around the hila
    devices: float  # share of PA views with any of leads, tubes, catheters, pacemaker; AP views: thrice


SITES = {
    # The broad mixture that the diffusion model learns: clinic and bedside, four decades of machines.
    "chestxray8": Site(
        field=(34, 43), ap=0.35, tilt=2.0, off_centre=1.0, stretch=(0.93, 1.07), breath=(0.1, 1.0),
        scatter=(0.4, 1.4), noise=(0.004, 0.022), blur=(0.03, 0.16), lung_grey=(0.15, 0.58),
        heart_grey=(0.66, 0.93), black=(0.0, 0.12), sharpen=(0.0, 0.6),
        collimated=0.3, border=(-3.0, 2.0), border_grey=(0.0, 0.06), blocks=0.0, marker=0.7,
        nodule=0.15, nodule_radius=(0.5, 1.8), consolidation=0.2, effusion=0.12, upper_lobe=0.06,
        interstitial=0.15, devices=0.2,
    ),
    # Erect PA films of cooperative patients, digitised: soft and bright, one small nodule in most.
    "jsrt": Site(
        field=(34.5, 40), ap=0.0, tilt=0.8, off_centre=0.6, stretch=(0.99, 1.01), breath=(0.55, 1.0),
        scatter=(0.5, 0.9), noise=(0.004, 0.01), blur=(0.03, 0.07), lung_grey=(0.3, 0.62),
        heart_grey=(0.8, 0.94), black=(0.02, 0.3), sharpen=(0.0, 0.0),
        collimated=0.0, border=(0.0, 0.0), border_grey=(0.0, 0.0), blocks=0.75, marker=0.1,
        nodule=0.6, nodule_radius=(0.4, 1.2), consolidation=0.0, effusion=0.0, upper_lobe=0.0,
        interstitial=0.0, devices=0.0,
    ),
    # Patients of a referral hospital: many at the bedside, many ill, flat and grainy images.
    "nih": Site(
        field=(34, 43), ap=0.5, tilt=2.5, off_centre=1.2, stretch=(0.92, 1.08), breath=(0.0, 0.9),
        scatter=(0.7, 1.7), noise=(0.008, 0.018), blur=(0.06, 0.18), lung_grey=(0.26, 0.54),
        heart_grey=(0.7, 0.88), black=(0.0, 0.15), sharpen=(0.0, 0.5),
        collimated=0.35, border=(-2.5, 2.0), border_grey=(0.0, 0.05), blocks=0.0, marker=0.85,
        nodule=0.2, nodule_radius=(0.6, 2.0), consolidation=0.45, effusion=0.3, upper_lobe=0.05,
        interstitial=0.3, devices=0.35,
    ),
    # Tuberculosis screening on a hard, edge-enhanced digital system with the shutter in view.
    "montgomery": Site(
        field=(36, 43), ap=0.0, tilt=1.5, off_centre=0.9, stretch=(0.92, 1.02), breath=(0.4, 1.0),
        scatter=(0.35, 0.7), noise=(0.008, 0.02), blur=(0.02, 0.06), lung_grey=(0.22, 0.46),
        heart_grey=(0.7, 0.88), black=(0.0, 0.1), sharpen=(0.3, 0.8),
        collimated=0.95, border=(0.3, 3.5), border_grey=(0.0, 0.04), blocks=0.0, marker=0.5,
        nodule=0.05, nodule_radius=(0.5, 1.5), consolidation=0.05, effusion=0.1, upper_lobe=0.45,
        interstitial=0.05, devices=0.0,
    ),
}  # fmt: skip
