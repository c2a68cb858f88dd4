"""Architectures: plain modules that read an image, read a text, and let them meet (`contract`)."""

from multimodal.models.clip import Clip
from multimodal.models.lxmert import Lxmert
from multimodal.models.visualbert import VisualBert

__all__ = ["Clip", "Lxmert", "VisualBert"]
