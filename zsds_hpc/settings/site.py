"""Facts of a site, in one file and nowhere else: how MPI is started there, and how much there is."""

from pathlib import Path

from zsds_hpc.core.params import Params, param
from zsds_hpc.settings.load import CONFIG_DIR, load_params


class SiteFacts(Params):
    """A machine or cluster on which nights are run."""

    name: str = param(..., "Short name.")
    launcher: tuple[str, ...] = param(..., "Command that starts MPI ranks; {ranks} is replaced.")
    environment: dict[str, str] = param({}, "Variables set for the launcher.")
    ranks: int = param(0, "MPI ranks of a job; 0 takes the cores of the machine.", ge=0, le=100_000)


def load_site(name_or_path: str | Path = "laptop") -> SiteFacts:
    """Site from a YAML file, or by the name of one in `config/sites`."""
    path = Path(name_or_path)
    return load_params(SiteFacts, path if path.suffix else CONFIG_DIR / "sites" / f"{name_or_path}.yml")
