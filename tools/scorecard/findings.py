"""Everything that is compared between a run and its truth."""

from dataclasses import dataclass, field

from tools.scorecard import artifacts, astrometry, calibrations, disccheck, photometry, psfphot, sources
from tools.scorecard.products import Run, Science

#: At most this many science channels are compared, spread evenly over the run.
MAX_CHANNELS = 48


@dataclass
class Findings:
    """Comparisons of calibration products, and of science channels (lists of one length; `psf_fits` only where
    there is a PSF catalogue), and of the channels that were searched."""

    biases: list[calibrations.BiasCheck] = field(default_factory=list)
    flats: list[calibrations.FlatCheck] = field(default_factory=list)
    science: list[Science] = field(default_factory=list)
    positions: list[astrometry.AstrometryCheck] = field(default_factory=list)
    magnitudes: list[photometry.PhotometryCheck] = field(default_factory=list)
    masks: list[artifacts.ArtifactCheck] = field(default_factory=list)
    psf_fits: list[psfphot.PsfCheck] = field(default_factory=list)
    discoveries: disccheck.Discoveries = field(default_factory=disccheck.Discoveries)


def compare(run: Run) -> Findings:
    """Compare calibrations and a sample of the science channels."""
    findings = Findings(*calibrations.check_all(run))
    processed = [science for science in run.science() if science.is_processed]
    step = max(1, -(-len(processed) // MAX_CHANNELS))
    # By channel, so that its detector maps are read once.
    for science in sorted(processed[::step], key=lambda s: (s.night, s.rcid, s.exposure)):
        matched = sources.match(science)
        findings.science.append(science)
        findings.positions.append(astrometry.check(science, matched))
        findings.magnitudes.append(photometry.check(science, matched))
        findings.masks.append(artifacts.check(science, matched))
        if science.path("psfcat.fits").is_file():
            findings.psf_fits.append(psfphot.check(science, psfphot.read_catalogue(science)))
        science.forget_pixels()
    findings.discoveries = disccheck.compare(run)
    return findings
