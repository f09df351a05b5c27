"""TensorBoard, W&B, MLflow, trackio: fed from the records by the tool's own process, never inside a worker."""

from vitscale.trackers.choose import open_trackers
from vitscale.trackers.follow import Follower, catch_up
from vitscale.trackers.protocol import Described, Point, Tracker

__all__ = ["Described", "Follower", "Point", "Tracker", "catch_up", "open_trackers"]
