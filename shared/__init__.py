"""What both sides must compute identically: encoders, image preparation, the feature map; and the console."""

__version__ = "0.1.0"
