"""`learnd demo`: the whole loop on embedded defaults, told while it happens."""

from daemon.demo.play import run_demo

__all__ = ["run_demo"]
