"""The commands. Installed as `project.scripts`: `from project.scripts.train import train`."""
