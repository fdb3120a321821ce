"""Trained networks for others: exported files, folders and repositories of weights, model cards."""

from isoconv.deploy.export import export_run as export_run
from isoconv.deploy.hub import from_pretrained as from_pretrained
from isoconv.deploy.hub import push_to_hub as push_to_hub
from isoconv.deploy.hub import save_pretrained as save_pretrained

__all__ = ["export_run", "from_pretrained", "push_to_hub", "save_pretrained"]
